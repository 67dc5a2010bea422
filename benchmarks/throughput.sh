#!/usr/bin/env bash
# train.py against the plain loop on one GPU, in turns on the same machine: 65,536 tokens a step of real text, bf16.
#
#   bash benchmarks/throughput.sh MODEL_CONFIG TOKENIZER [ROUNDS] [STEPS]
set -euo pipefail
config=$1 tokenizer=$2 rounds=${3:-2} steps=${4:-30}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${OUT:-$(mktemp -d)}
cd "$here"
shape=(--batch_size 16 --seq_len 4096 --varlen)
for ((round = 0; round < rounds; round++)); do
  python3 benchmarks/plain_loop.py --config "$config" --tokenizer "$tokenizer" --steps "$steps" \
    "${shape[@]}" 2>"$out/plain-$round.err" | tail -n 1 | tee -a "$out/plain.jsonl"
  rm -rf "$out/run-$round"
  python3 -m accelerate.commands.accelerate_cli launch --config_file accelerate_configs/single.yaml train.py \
    --job.dump_folder "$out/run-$round" --model.config "$config" --model.tokenizer_path "$tokenizer" \
    --training.dataset python-stdlib --training.batch_size 16 --training.seq_len 4096 --training.varlen \
    --training.steps "$steps" --training.warmup_steps 5 --metrics.log_freq 5 \
    --checkpoint.no_enable_checkpoint --evaluation.sample_tokens 0 >"$out/run-$round.log" 2>&1 ||
    tail -n 30 "$out/run-$round.log"
  cp "$out/run-$round/metrics.jsonl" "$out/metrics-$round.jsonl"
  tail -n 8 "$out/run-$round.log"
  rm -rf "$out/run-$round/hf"
done
python3 benchmarks/compare_throughput.py "$out"
