"""Training throughput on one GPU: this project, a plain eager loop and the Hugging Face Trainer.

All train the same model on the same documents, in turns within one process, so that a machine that
slows down slows all of them. Variants:

* ours: the loop of `flame_accel.train` with its data, logging and guard;
* plain: what a user of fla writes: eager, bf16 autocast over fp32 weights, fused AdamW, clipping;
  its batches are on the device before the clock starts;
* trainer: `transformers.Trainer` with the same precision, optimizer and clipping;
* bf16_residual: the plain loop with the output of the embedding cast to bf16;
* ours_fla_kernels, ours_no_packages: ours without our fused kernels, without those of packages;
* ours_flash_qla, ours_graphs: ours with FlashQLA, and with passes as CUDA graphs.

    python benchmarks/train_tokenizer.py TOKENIZER
    python benchmarks/throughput.py --tokenizer TOKENIZER --models gla transformer --sizes 340M \
        --shapes ragged-32768 --output benchmarks/results/throughput_h100.json

Each (model, size, shape) has a process of its own. `variants.py` next to this file has the loops.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = (
    "ours",
    "plain",
    "trainer",
    "bf16_residual",
    "ours_fla_kernels",
    "ours_no_packages",
    "ours_flash_qla",
    "ours_graphs",
)
PACKAGES = ("torch", "triton", "flash-linear-attention", "transformers", "accelerate")
OPTIONAL_PACKAGES = ("flash-attn-4", "flash-qla", "tilelang")


class Shape(NamedTuple):
    """Tokens of a step."""

    rows: int
    seq_len: int
    varlen: bool
    """Whether documents of at most `seq_len` tokens are packed into one row with `cu_seqlens`."""

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.seq_len


SHAPES = {
    "ragged-65536": Shape(16, 4096, True),
    "ragged-32768": Shape(8, 4096, True),
    "ragged-16384": Shape(4, 4096, True),
    "16x4096": Shape(16, 4096, False),
    "8x4096": Shape(8, 4096, False),
    "2x32768": Shape(2, 32768, False),
}


def main() -> None:
    """Measures every case that the time allows, and writes and prints the table after each."""
    arguments = parse_arguments()
    if arguments.child:
        measure_case(arguments)
        return
    deadline = time.monotonic() + arguments.budget
    for model, size, shape in product(arguments.models, arguments.sizes, arguments.shapes):
        left = deadline - time.monotonic()
        if left < arguments.reserve:
            print(f"{model} {size} {shape}: not measured, {left:.0f} s left")
            continue
        if result := run_child(arguments, model, size, shape, timeout=left):
            save_result(arguments.output, result)
    print_table(load_results(arguments.output))


def parse_arguments() -> argparse.Namespace:
    """Reads the command line; `--child` is how the driver calls itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument("--models", nargs="+", default=["gla", "transformer", "gated_deltanet"])
    parser.add_argument("--sizes", nargs="+", default=["340M"], help="as in configs/MODEL_SIZE")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["ragged-32768"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS[:3])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each variant")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a turn")
    parser.add_argument("--warmup", type=int, default=2, help="steps of a turn before the clock")
    parser.add_argument("--tune_kernels", choices=["always", "never"], default="never")
    parser.add_argument("--budget", type=float, default=86_400, help="seconds for all cases")
    parser.add_argument("--reserve", type=float, default=60, help="seconds that a case needs")
    parser.add_argument("--output", type=Path, required=True, help="JSON file that is added to")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_child(
    arguments: argparse.Namespace, model: str, size: str, shape: str, *, timeout: float
) -> dict[str, Any] | None:
    """Measures one case in a process of its own; None where it fails or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--child", "--tokenizer", arguments.tokenizer]
        command += ["--models", model, "--sizes", size, "--shapes", shape, "--output", str(result)]
        command += ["--variants", *arguments.variants, "--tune_kernels", arguments.tune_kernels]
        for name in ("rounds", "steps", "warmup"):
            command += [f"--{name}", str(getattr(arguments, name))]
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
            # what `accelerate launch` sets
            "ACCELERATE_MIXED_PRECISION": "bf16",
        }
        try:
            subprocess.run(command, check=True, timeout=timeout, env=environment)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{model} {size} {shape}: {error}", flush=True)
            return None
        return json.loads(result.read_text())


def measure_case(arguments: argparse.Namespace) -> None:
    """Writes the figures of one case: a turn of each variant per round."""
    from device_measures import device_name
    from variants import Case, Turn, build_variant

    (model,), (size,), (shape,) = arguments.models, arguments.sizes, arguments.shapes
    case = Case(
        config=str(ROOT / f"configs/{model}_{size}.json"),
        tokenizer=arguments.tokenizer,
        rows=SHAPES[shape].rows,
        seq_len=SHAPES[shape].seq_len,
        varlen=SHAPES[shape].varlen,
        tune_kernels=arguments.tune_kernels,
        log_freq=arguments.steps,
    )
    started_at = time.monotonic()
    variants = {name: build_variant(name, case) for name in arguments.variants}
    print(f"{model} {size} {shape}: first steps after {time.monotonic() - started_at:.0f} s")
    turns: dict[str, list[Turn]] = {name: [] for name in variants}
    for number in range(arguments.rounds):
        # each variant is the first of a round once
        first = number % len(variants)
        for name in [*list(variants)[first:], *list(variants)[:first]]:
            turn = variants[name].measure_turn(warmup=arguments.warmup, steps=arguments.steps)
            turns[name].append(turn)
            rate = SHAPES[shape].tokens / turn.step_seconds
            print(f"  round {number} {name:14} {rate:9,.0f} tok/s  {turn.peak_gib:5.1f} GiB")
    for variant in variants.values():
        variant.close()
    result = {"model": model, "size": size, "shape": shape, "gpu": device_name()}
    result |= summarize_turns(turns, SHAPES[shape].tokens)
    result["date"] = date.today().isoformat()
    result["versions"] = {name: version(name) for name in PACKAGES}
    for name in OPTIONAL_PACKAGES:
        with suppress(PackageNotFoundError):
            result["versions"][name] = version(name)
    result["versions"]["python"] = platform.python_version()
    arguments.output.write_text(json.dumps(result))


def summarize_turns(turns: dict[str, list[Any]], tokens: int) -> dict[str, Any]:
    """Medians, spreads (largest minus smallest, over the median) and peaks of each variant.

    Args:
        turns: Of each variant, by its name.
        tokens: Tokens of a step.
    """
    summary: dict[str, Any] = {"rounds": max(len(turns_of_one) for turns_of_one in turns.values())}
    spreads = {}
    for name, turns_of_one in turns.items():
        rates = [tokens / turn.step_seconds for turn in turns_of_one]
        median = statistics.median(rates)
        summary[f"{name}_tok_s"] = round(median)
        summary[f"{name}_gib"] = round(max(turn.peak_gib for turn in turns_of_one), 1)
        spreads[name] = round((max(rates) - min(rates)) / median, 4)
    if {"ours", "plain"} <= turns.keys():
        summary["ratio"] = round(summary["ours_tok_s"] / summary["plain_tok_s"], 3)
    return summary | {"spread": spreads}


def load_results(path: Path) -> list[dict[str, Any]]:
    """The results in a file; none where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else []


def save_result(path: Path, result: dict[str, Any]) -> None:
    """Adds a result to a file, in place of an earlier one of the same case and GPU."""
    same = ("model", "size", "shape", "gpu")
    others = [r for r in load_results(path) if any(r[name] != result[name] for name in same)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*others, result], indent=1) + "\n")


def print_table(results: list[dict[str, Any]]) -> None:
    """Prints the results as the Markdown table of docs/performance.md."""
    names = [name for name in VARIANTS if any(f"{name}_tok_s" in result for result in results)]
    header = ["model", "tokens a step", "GPU", *(f"{name}, tok/s" for name in names)]
    print("|", " | ".join([*header, "ours / plain", *(f"{name}, GiB" for name in names)]), "|")
    print("|---" * (2 * len(names) + 4) + "|")
    for result in results:
        cells = [f"{result['model']} {result['size']}", result["shape"], result["gpu"]]
        cells += [format_rate(result, name) for name in names]
        cells += [str(result.get("ratio", "-"))]
        cells += [str(result.get(f"{name}_gib", "-")) for name in names]
        print("|", " | ".join(cells), "|")


def format_rate(result: dict[str, Any], name: str) -> str:
    """Median and half of the spread: "102,500 +- 0.4%"."""
    if f"{name}_tok_s" not in result:
        return "-"
    return f"{result[f'{name}_tok_s']:,} +- {result['spread'][name] / 2:.1%}"


if __name__ == "__main__":
    main()
