#!/usr/bin/env bash
# Trains a model: sets up the environment on first use, then runs train.py through `accelerate launch`.
#
#   bash train.sh                                   the quickstart: about a minute and a half on two CPU cores
#   bash train.sh -h                                every option
#   bash train.sh --job.config_file run.toml ...    a run of your own; options override the file
#
# Honoured: NGPU (processes on this machine; default: its GPUs, or 1), NNODE, NODE_RANK, MASTER_ADDR, MASTER_PORT,
# ACCELERATE_CONFIG (a name from accelerate_configs/, such as fsdp2, or a file). docs/engines.md says which.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_environment.sh"
setup_environment "torch accelerate fla transformers datasets evaluate tyro wandb tensorboard yaml" \
  "$ROOT/requirements.txt"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}

base=(--job.config_file "$ROOT/configs/recipes/quickstart.toml")
# paths in a run file are relative to the working directory
[ "$PWD" = "$ROOT" ] || base+=(--model.config "$ROOT/configs/gla_1M.json")
for argument in "$@"; do
  case $argument in
    -h | --help) exec "$PYTHON" "$ROOT/train.py" --help ;;
    --job.config_file | --job.config_file=* | --job.config-file* | --model.config | --model.config=*) base=() ;;
  esac
done
set -- ${base[@]+"${base[@]}"} "$@"

# wrong options end here, with exit code 2 and before the launcher imports torch
"$PYTHON" -m flame_accel.config "$@"

gpus=0
if command -v nvidia-smi >/dev/null 2>&1; then gpus=$(nvidia-smi -L 2>/dev/null | wc -l); fi
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
fi
NGPU=${NGPU:-$((gpus > 0 ? gpus : 1))}
NNODE=${NNODE:-1}
processes=$((NGPU * NNODE))
if [ -z "${ACCELERATE_CONFIG:-}" ]; then
  if [ "$processes" -gt 1 ]; then
    ACCELERATE_CONFIG=ddp
  elif [ "$gpus" -gt 0 ]; then
    ACCELERATE_CONFIG=single
  else
    ACCELERATE_CONFIG=cpu
  fi
fi
if [ ! -f "$ACCELERATE_CONFIG" ]; then
  ACCELERATE_CONFIG="$ROOT/accelerate_configs/${ACCELERATE_CONFIG%.yaml}.yaml"
fi
if [ ! -f "$ACCELERATE_CONFIG" ]; then
  echo "ACCELERATE_CONFIG: no file $ACCELERATE_CONFIG; a file, or one of:" >&2
  for file in "$ROOT"/accelerate_configs/*.yaml; do echo "  $(basename "$file" .yaml)" >&2; done
  exit 2
fi
if [ "$processes" -gt 1 ] && grep -q '^distributed_type: *"NO"' "$ACCELERATE_CONFIG"; then
  echo "ACCELERATE_CONFIG: $ACCELERATE_CONFIG starts one process, NGPU and NNODE ask for $processes; use ddp or fsdp2" >&2
  exit 2
fi
if grep -q '^distributed_type: *DEEPSPEED' "$ACCELERATE_CONFIG" && ! has_modules "$PYTHON" deepspeed; then
  echo "ACCELERATE_CONFIG: $ACCELERATE_CONFIG asks for DeepSpeed, which is not installed; install it with" >&2
  echo "  $PYTHON -m pip install --use-pep517 --requirement $ROOT/requirements-engines.txt" >&2
  exit 2
fi
launch=(--config_file "$ACCELERATE_CONFIG" --num_processes "$processes" --num_machines "$NNODE")
# NODE_RANK says who waits for the others; c10d would guess it from host names
launch+=(--machine_rank "${NODE_RANK:-0}" --rdzv_backend static)
if [ "$NNODE" -gt 1 ]; then
  launch+=(--main_process_ip "${MASTER_ADDR:?NNODE > 1 needs MASTER_ADDR}"
    --main_process_port "${MASTER_PORT:-29500}")
elif [ -n "${MASTER_PORT:-}" ]; then
  launch+=(--main_process_port "$MASTER_PORT")
fi
if [ "$gpus" -eq 0 ]; then
  # bf16 is slower than fp32 on many CPUs; the launcher would give every process a single thread;
  # and threads that wait by spinning long starve on a shared core (a tenth of the speed was seen)
  cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  launch+=(--mixed_precision no)
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / NGPU > 0 ? cores / NGPU : 1))}
  export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
fi
# --quiet: train.py has said what went wrong; the launcher's own traceback would bury it
exec "$PYTHON" -m accelerate.commands.accelerate_cli launch --quiet "${launch[@]}" "$ROOT/train.py" "$@"
