"""Throughput, memory and loss of one model under several engines, each a launch of train.py.

    python benchmarks/engines.py --model configs/gla_340M.json --tokenizer DIR \
        --run single:1 --run ddp:2 --run fsdp2:2 --run "fsdp2:2:--training.compile"

A run is `configuration:processes[:options]`, with a file of accelerate_configs/. All runs read the
same number of rows per step, `--rows`, split over the data-parallel ranks and over as many
micro-batches as `--batch-size` requires. Prints a Markdown table, with the tokens per second and
device of each run as a ratio to the first run. The last `--measured` steps are measured.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    "run",
    "devices",
    "micro-batches x rows",
    "tokens/s",
    "tokens/s/device",
    "ratio",
    "MFU",
    "peak GiB",
    "loss at 1",
    "loss at the end",
    "gradient norm",
)


def measure_run(run: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float] | str:
    """Launches a run; returns its last record and first loss, or the output of a failed run."""
    config, processes, options = (*run.split(":", 2), "")[:3]
    extra = shlex.split(options)
    tensor = next((int(x.split("=")[1]) for x in extra if "tensor_parallel_degree=" in x), 1)
    dp_size = int(processes) // tensor
    micro_batches = max(1, arguments.rows // dp_size // arguments.batch_size)
    batch_size = arguments.rows // dp_size // micro_batches
    command = [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"),
        *("--config_file", str(ROOT / f"accelerate_configs/{config}.yaml")),
        *("--num_processes", processes, "--mixed_precision", arguments.mixed_precision),
        str(ROOT / "train.py"),
        f"--model.config={arguments.model}",
        f"--model.tokenizer_path={arguments.tokenizer}",
        f"--training.dataset={arguments.data}",
        f"--training.seq_len={arguments.seq_len}",
        f"--training.batch_size={batch_size}",
        f"--training.gradient_accumulation_steps={micro_batches}",
        f"--training.steps={arguments.steps}",
        *("--training.varlen", "--training.warmup_steps=5", "--evaluation.sample_tokens=0"),
        f"--metrics.log_freq={arguments.measured}",
        *("--checkpoint.no_enable_checkpoint", f"--job.dump_folder={folder}"),
        *extra,
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=arguments.limit,
    )
    if done.returncode:
        return done.stdout[-1500:]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {
        **records[-1],
        "devices": int(processes),
        "micro_batches": micro_batches,
        "batch_size": batch_size,
        "first_loss": records[0]["train/loss"],
    }


def format_row(run: str, record: dict[str, float], reference: float) -> str:
    """A row of the Markdown table; `reference` is the throughput of the first run."""
    per_device = record["throughput/tokens_per_second_per_device"]
    cells = (
        run.replace(":", " ", 2),
        f"{record['devices']}",
        f"{record['micro_batches']} x {record['batch_size']}",
        f"{record['throughput/tokens_per_second']:,.0f}",
        f"{per_device:,.0f}",
        f"{per_device / reference:.3f}",
        f"{record.get('throughput/mfu', float('nan')):.3f}",
        f"{record['memory/peak_gib']:.1f}",
        f"{record['first_loss']:.4f}",
        f"{record['train/loss']:.4f}",
        f"{record['optimizer/grad_norm']:.3f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Launches all runs and prints each row as soon as its run has ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="configs/gla_340M.json")
    parser.add_argument("--tokenizer", default="byte")
    parser.add_argument("--data", default="python-stdlib")
    parser.add_argument("--rows", type=int, default=32, help="rows per step, over all ranks")
    parser.add_argument("--batch-size", type=int, default=16, help="maximum rows of a micro-batch")
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--measured", type=int, default=10)
    parser.add_argument("--mixed-precision", default="bf16", choices=("bf16", "no"))
    parser.add_argument("--limit", type=float, default=300, help="seconds for each run")
    parser.add_argument("--run", action="append", required=True)
    arguments = parser.parse_args()
    print(
        f"{arguments.model}, {arguments.rows} rows of {arguments.seq_len} tokens a step, "
        f"{arguments.steps} steps, mixed precision {arguments.mixed_precision}\n"
    )
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS), flush=True)
    reference = None
    with tempfile.TemporaryDirectory() as root:
        for index, run in enumerate(arguments.run):
            try:
                record = measure_run(run, arguments, Path(root) / str(index))
            except subprocess.TimeoutExpired:
                record = f"not finished after {arguments.limit} s"
            if isinstance(record, str):
                print(f"| {run} | failed |", flush=True)
                print(record, file=sys.stderr, flush=True)
                continue
            reference = reference or record["throughput/tokens_per_second_per_device"]
            print(format_row(run, record, reference), flush=True)


if __name__ == "__main__":
    main()
