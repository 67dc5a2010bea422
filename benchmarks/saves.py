"""What a checkpoint costs training: with training waiting for it, and written in the background.

One run of `flame_accel.train`'s loop with model, optimizer, data and logging. In turn, on the same
weights: steps without a save; saves in the background, each with the steps that are taken until it
is written; a save that training waits for; steps without a save again.

    python benchmarks/saves.py --config configs/gla_1.3B.json --folder /tmp/saves \
        --output benchmarks/results/saves_h200.json
    python benchmarks/saves.py --config configs/gla_340M.json --rows 1 --seq_len 64 --steps 5

Stall: time during which the device has nothing to do, from when it has finished its last step.
Cost: wall time from there until the checkpoint is complete, less that of the steps taken in it, so
that steps that are slowed down by the write count. Share: the cost, of the wall time from one save
to the next.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "flash-linear-attention", "transformers", "safetensors")


def main() -> None:
    """Measures, prints a Markdown table, and adds the figures to a JSON file."""
    arguments = parse_arguments()
    sys.path.insert(0, str(ROOT))
    # what `accelerate launch` sets
    os.environ.setdefault("ACCELERATE_MIXED_PRECISION", arguments.mixed_precision)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        # variants.py makes its run folder there
        tempfile.tempdir = folder
        result = measure(arguments)
    print_table(result)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/gla_1.3B.json", help="model config")
    parser.add_argument("--tokenizer", default="byte", help="folder of the tokenizer")
    parser.add_argument(
        "--vocab_multiple", type=int, default=32_000, help="pads the vocabulary of the tokenizer"
    )
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--seq_len", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=15, help="steps without a save, each time")
    parser.add_argument("--saves", type=int, default=2, help="saves in the background")
    parser.add_argument("--interval", type=int, default=500, help="steps from save to save")
    parser.add_argument("--async_mode", default="auto", help="as checkpoint.async_mode")
    parser.add_argument("--mixed_precision", default="bf16", choices=("bf16", "no"))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="disk to write to"
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args()


class Done(Exception):
    """Ends the loop of the run."""


@dataclass
class Save:
    """What a save cost."""

    stall_seconds: float
    steps: int = 0
    """Taken until it was written."""
    total_seconds: float = 0.0
    """From its begin until it was written and these steps were done."""


@dataclass
class Figures:
    """What is measured."""

    step_seconds: list[float] = field(default_factory=list)
    """Means of the steps without a save."""
    background: list[Save] = field(default_factory=list)
    waiting: Save | None = None
    allocate_seconds: float = 0.0
    """Of the copies' memory."""
    mode: str = ""
    """What the saver says that it does."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the loop, and computes the figures."""
    from device_measures import device_name
    from variants import Case, OursVariant

    started_at = time.perf_counter()
    case = Case(
        config=str(ROOT / arguments.config),
        tokenizer=arguments.tokenizer,
        rows=arguments.rows,
        seq_len=arguments.seq_len,
        varlen=True,
        tune_kernels="never",
        log_freq=10**6,
    )
    run = OursVariant(
        case,
        **{
            "training.vocab_multiple": arguments.vocab_multiple,
            "checkpoint.async_mode": arguments.async_mode,
            "checkpoint.keep_latest_k": 1,
        },
    )
    figures = Figures()
    schedule = measure_at_steps(run, arguments, figures)
    next(schedule)

    def advance() -> None:
        try:
            next(schedule)
        except StopIteration:
            raise Done from None

    with suppress(Done):
        run.run_steps(10**6, advance)
    checkpoint = next((Path(run.config.job.dump_folder) / "checkpoint").glob("step-*"))
    stored = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    free = shutil.disk_usage(arguments.folder).free
    step = statistics.median(figures.step_seconds)
    result: dict[str, Any] = {
        "model": Path(arguments.config).stem,
        "device": device_name(),
        "tokens_per_step": arguments.rows * arguments.seq_len,
        "mode": figures.mode,
        "checkpoint_gib": round(stored / 2**30, 2),
        "free_disk_gib": round(free / 2**30, 1),
        "interval": arguments.interval,
        "step_seconds": [round(seconds, 4) for seconds in figures.step_seconds],
        "allocate_seconds": round(figures.allocate_seconds, 2),
        "background": [describe_save(s, step, arguments.interval) for s in figures.background],
        "seconds": round(time.perf_counter() - started_at),
        "date": date.today().isoformat(),
        "versions": {},
    }
    if figures.waiting is not None:
        result["waiting"] = describe_save(figures.waiting, step, arguments.interval)
    for name in PACKAGES:
        with suppress(ImportError):
            result["versions"][name] = version(name)
    return result


def measure_at_steps(run: Any, arguments: argparse.Namespace, figures: Figures) -> Any:
    """A generator that is resumed after each step of the run, and fills in the figures."""
    from device_measures import synchronize

    from flame_accel.checkpoint import CheckpointSaver
    from flame_accel.run_outputs import save

    loop, components = run.loop, run.components

    def now() -> float:
        synchronize()
        return time.perf_counter()

    def begin_save() -> tuple[float, Save]:
        """Saves, and returns when it began and what it has cost so far."""
        begin = now()
        save(run.config, loop, last=False)
        return begin, Save(time.perf_counter() - begin)

    # steps that compile
    for _ in range(4):
        yield
    begin = now()
    loop.saver.choose_thread_and_log()
    figures.allocate_seconds = now() - begin
    figures.mode = loop.saver.description
    for number in range(arguments.saves + 2):
        begin = now()
        for _ in range(arguments.steps):
            yield
        figures.step_seconds.append((now() - begin) / arguments.steps)
        if number < arguments.saves:
            begin, cost = begin_save()
            while loop.saver.is_writing:
                yield
                cost.steps += 1
            cost.total_seconds = now() - begin
            figures.background.append(cost)
            print(f"in the background: {cost}", flush=True)
        elif number == arguments.saves:
            background = loop.saver
            background.wait()
            waiting = CheckpointSaver(
                run.accelerator,
                loop.checkpoints,
                async_mode="disabled",
                failed_saves=loop.failed_saves,
                watchdog=loop.watchdog,
                model=components.model,
                optimizer=components.optimizer,
                tokenizer=components.tokenizer,
            )
            run.loop = loop = loop._replace(saver=waiting)
            begin, cost = begin_save()
            cost.total_seconds = now() - begin
            figures.waiting = cost
            print(f"training waits: {cost}", flush=True)


def describe_save(save: Save, step_seconds: float, interval: int) -> dict[str, float]:
    """The figures of a save as JSON; see the top of this file."""
    cost = save.total_seconds - save.steps * step_seconds
    return {
        "stall_seconds": round(save.stall_seconds, 3),
        "write_seconds": round(save.total_seconds, 2),
        "steps_meanwhile": save.steps,
        "cost_seconds": round(cost, 3),
        "share": round(cost / (interval * step_seconds + cost), 5),
    }


def print_table(result: dict[str, Any]) -> None:
    """Prints the figures as a Markdown table."""
    step = statistics.median(result["step_seconds"])
    print(
        f"\n{result['model']} on {result['device']}, {result['tokens_per_step']:,} tokens a step, "
        f"{step:.3f} s a step, {result['checkpoint_gib']} GiB a checkpoint; "
        f"{result['mode']}, allocated in {result['allocate_seconds']} s; "
        f"{result['seconds']} s in all\n"
    )
    print(f"| save | stall | until written | cost | share, every {result['interval']} steps |")
    print("|---|---|---|---|---|")
    rows = [("in the background", save) for save in result["background"]]
    rows += [("training waits", result["waiting"])] if "waiting" in result else []
    for name, save in rows:
        print(
            f"| {name} | {save['stall_seconds']:.2f} s | {save['write_seconds']:.1f} s | "
            f"{save['cost_seconds']:.2f} s | {save['share']:.2%} |"
        )


if __name__ == "__main__":
    main()
