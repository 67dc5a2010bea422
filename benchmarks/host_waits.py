"""Where the host waits for the GPU in a training step, and how much of a step the GPU is busy.

For each model, in a process of its own: the calls of `train.py`'s loop that wait for the device in
steps that do not log (`torch.cuda.set_sync_debug_mode`), the time of a step, and the sum of the
times of its kernels.

    python benchmarks/train_tokenizer.py TOKENIZER
    python benchmarks/host_waits.py --tokenizer TOKENIZER --models gla transformer --sizes 340M
"""

import argparse
import os
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NO_LOG = 10**6
"""Steps between two log lines, so that none is written."""


def main() -> None:
    """Measures each model in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument("--models", nargs="+", default=["gla"])
    parser.add_argument("--sizes", nargs="+", default=["340M"], help="as in configs/MODEL_SIZE")
    parser.add_argument("--shape", default="ragged-32768", help="as in throughput.py")
    parser.add_argument("--steps", type=int, default=5, help="steps of each measurement")
    parser.add_argument("--kernels", type=int, default=0, help="slowest kernels to list")
    parser.add_argument("--variant", default="ours", help="of our loop, as in throughput.py")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure_model(arguments)
        return
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "ACCELERATE_MIXED_PRECISION": "bf16",
    }
    for model, size in product(arguments.models, arguments.sizes):
        command = [sys.executable, __file__, "--child", "--tokenizer", arguments.tokenizer]
        command += ["--models", model, "--sizes", size, "--shape", arguments.shape]
        command += ["--steps", str(arguments.steps), "--kernels", str(arguments.kernels)]
        command += ["--variant", arguments.variant]
        subprocess.run(command, check=False, env=environment)


def measure_model(arguments: argparse.Namespace) -> None:
    """Prints the waits and the times of one model."""
    import torch
    from throughput import SHAPES
    from variants import OUR_OPTIONS, Case, OursVariant

    (model,), (size,), shape = arguments.models, arguments.sizes, SHAPES[arguments.shape]
    case = Case(
        config=str(ROOT / f"configs/{model}_{size}.json"),
        tokenizer=arguments.tokenizer,
        rows=shape.rows,
        seq_len=shape.seq_len,
        varlen=shape.varlen,
        tune_kernels="never",
        log_freq=NO_LOG,
    )
    ours = OursVariant(case, **OUR_OPTIONS[arguments.variant])
    steps = arguments.steps

    def run() -> None:
        ours.run_steps(steps, lambda: None)
        torch.cuda.synchronize()

    ours.own_bytes = 0
    run()
    waits = count_waits(run)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
    kernels = [e for e in profile.key_averages() if e.device_type.name == "CUDA"]
    busy = sum(event.self_device_time_total for event in kernels) / steps / 1e6
    seconds = min(ours.measure_turn(warmup=2, steps=steps).step_seconds for _ in range(2))
    gpu = torch.cuda.get_device_name()
    print(
        f"{model} {size} {arguments.shape} {gpu}: step {seconds * 1e3:.1f} ms, GPU busy "
        f"{busy * 1e3:.1f} ms, {shape.tokens / seconds:,.0f} tok/s, "
        f"{sum(waits.values()) / steps:g} waits a step",
        flush=True,
    )
    for place, count in waits.most_common(12):
        print(f"    {count / steps:g} x {place}", flush=True)
    slowest = sorted(kernels, key=lambda event: -event.self_device_time_total)
    for event in slowest[: arguments.kernels]:
        milliseconds = event.self_device_time_total / steps / 1e3
        print(f"    {milliseconds:8.2f} ms {event.count / steps:6g} x {event.key[:90]}", flush=True)


def count_waits(run: Callable[[], None]) -> Counter[str]:
    """How often each place waits while `run` runs; those of the first step are among them."""
    import torch

    waits: Counter[str] = Counter()

    def note(message: object, *args: object, **kwargs: object) -> None:
        if "synchroniz" not in str(message):
            return
        frames = [
            f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_stack()
            if "site-packages/torch/" not in frame.filename and frame.filename != __file__
        ]
        waits[" < ".join(reversed(frames[-5:]))] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return waits


if __name__ == "__main__":
    main()
