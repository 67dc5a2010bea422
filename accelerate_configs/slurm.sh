#!/usr/bin/env bash
# One run over several machines of a SLURM cluster. From the root of the repository:
#
#   sbatch --nodes 4 accelerate_configs/slurm.sh --job.config_file run.toml [more options]
#
# Submitting the same command again resumes the run from its newest checkpoint.
#SBATCH --job-name=flame_accel
#SBATCH --nodes=2
# one launcher per machine, which starts one process per GPU
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
# a job that loses a machine is queued again and appends to its log
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
# SLURM runs a copy of this file in another folder
cd "$SLURM_SUBMIT_DIR"
# the environment of the repository (bash train.sh makes it) comes before that of the shell
PATH="$PWD/.venv/bin:$PATH"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# two jobs may share a machine: each gets its own port
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
CONFIG=${ACCELERATE_CONFIG:-multi_node}
PROCESSES=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-1}))
# threads per process; the launcher would use a single one
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((${SLURM_CPUS_PER_TASK:-1} * SLURM_NNODES / PROCESSES))}
export MASTER_ADDR MASTER_PORT CONFIG PROCESSES OMP_NUM_THREADS

# wrong options end the job here, before any machine starts
python -m flame_accel.config "$@"

# SLURM_NODEID is known on each machine only, hence a shell there
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch \
  --config_file "accelerate_configs/$CONFIG.yaml" \
  --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" --num_processes "$PROCESSES" \
  --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \
  train.py "$@"' launch "$@"
