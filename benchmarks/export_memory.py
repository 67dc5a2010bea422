"""Host memory that an export needs, in addition to the model, under several engines.

    python benchmarks/export_memory.py --model configs/gla_1.3B.json --run single:1 --run fsdp2:2

A run is `configuration:processes`, with a file of accelerate_configs/. Each builds the model with
fp32 weights, on the CPU if there is no GPU, and exports it untrained, in `--dtype`. Anonymous and
shared memory of each process is sampled every 2 ms, from the start of the export to its end; the
table has what was added to it at most, as a multiple of the size of the exported weights. The run
`command` is `flame-accel export` of an fp32 checkpoint, from after its imports on.
"""

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INTERVAL_SECONDS = 0.002


def read_memory_bytes() -> int:
    """Memory of this process that is not the content of a file."""
    status = Path("/proc/self/status").read_text()
    return sum(1024 * int(kib) for kib in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+)", status, re.M))


@contextmanager
def measure_added_memory() -> Iterator[Callable[[], int]]:
    """Yields a function that says, after the block, how many bytes it has added at most."""
    # what was freed before must not hide what is added
    ctypes.CDLL(None).malloc_trim(0)
    before, peak, ended = read_memory_bytes(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, read_memory_bytes())
            time.sleep(INTERVAL_SECONDS)

    sampler = threading.Thread(target=sample)
    sampler.start()
    yield lambda: peak - before
    ended.set()
    sampler.join()


def export_in_process(output: Path, options: list[str]) -> None:
    """What every launched process does: builds the model, exports it, writes what it measured."""
    import torch
    import torch.distributed

    from flame_accel import models, parallel, train
    from flame_accel.checkpoint import find_starting_point
    from flame_accel.config import parse
    from flame_accel.hub.export import export_model
    from flame_accel.hub.model_card import ModelOrigin

    config = parse(options)
    accelerator = parallel.build_accelerator(
        config.training,
        config.comm,
        run_folder=str(output),
    )
    train.setup_run(config, accelerator, output)
    start = find_starting_point(accelerator, output, config.checkpoint, total_steps=1)
    model_config = models.load_model_config(str(config.model.config))
    components = train.build_components(config, accelerator, model_config, start)
    accelerator.wait_for_everyone()
    with measure_added_memory() as added:
        export_model(
            accelerator,
            components.model,
            components.tokenizer,
            output / "hf",
            dtype=getattr(torch, config.checkpoint.export_dtype),
            origin=ModelOrigin(),
        )
    record = json.dumps({"added": added()})
    (output / f"rank-{accelerator.process_index}.json").write_text(record)
    accelerator.end_training()


def export_by_command(output: Path, options: list[str]) -> None:
    """Saves an fp32 checkpoint, then measures the command that exports it."""
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--checkpoint.create_seed_checkpoint", *options],
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        check=True,
    )
    from flame_accel import models
    from flame_accel.__main__ import main as run_command
    from flame_accel.config import parse

    models.register_models()
    config = parse(options)
    words = [str(output / "checkpoint/step-0"), str(output / "hf")]
    with measure_added_memory() as added:
        run_command(["export", *words, f"--dtype={config.checkpoint.export_dtype}"])
    (output / "rank-0.json").write_text(json.dumps({"added": added()}))


def measure_run(run: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Launches a run; returns what each of its processes measured."""
    config, _, processes = run.partition(":")
    options = [
        f"--model.config={arguments.model}",
        *("--model.tokenizer_path=byte", "--training.dataset=python-stdlib"),
        *("--training.batch_size=1", "--training.seq_len=64", "--training.steps=1"),
        *("--training.warmup_steps=0", "--training.num_workers=0"),
        # the byte tokenizer has 258 ids: the model keeps the size of its name
        *("--training.vocab_multiple=32000", f"--checkpoint.export_dtype={arguments.dtype}"),
        f"--job.dump_folder={folder}",
    ]
    launcher = [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"),
        *("--config_file", str(ROOT / f"accelerate_configs/{config}.yaml")),
        *("--num_processes", processes, "--mixed_precision", "no"),
    ]
    command = [*([sys.executable] if run == "command" else launcher), __file__]
    command += ["--command" if run == "command" else "--measure", str(folder), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    files = sorted(folder.glob("rank-*.json"))
    return [json.loads(file.read_text()) for file in files]


def main() -> None:
    """Measures each run, or is one of the launched processes."""
    if sys.argv[1:2] == ["--measure"]:
        export_in_process(Path(sys.argv[2]), sys.argv[3:])
        return
    if sys.argv[1:2] == ["--command"]:
        export_by_command(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model config")
    parser.add_argument("--dtype", default="bfloat16", help="of the export (bfloat16)")
    parser.add_argument(
        "--run", action="append", required=True, metavar="CONFIG:PROCESSES", help="or command"
    )
    arguments = parser.parse_args()
    print("| run | export, GiB | added, rank 0 | added, other ranks |")
    print("|---|---|---|---|")
    for run in arguments.run:
        with tempfile.TemporaryDirectory(prefix="export-memory-") as folder:
            measured = measure_run(run, arguments, Path(folder))
            size = sum(file.stat().st_size for file in Path(folder, "hf").glob("*.safetensors"))
        first, *others = [record["added"] / size for record in measured]
        rest = f"{max(others):.2f}" if others else ""
        print(
            f"| {run} | {size / 2**30:.2f} {arguments.dtype} | {first:.2f} | {rest} |", flush=True
        )


if __name__ == "__main__":
    main()
