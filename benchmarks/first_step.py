"""How long the first optimizer step takes with empty caches, and how fast the kernels then are.

Each mode runs in a process of its own with empty caches of Triton and of flame_accel:

* `plain`: fla as it is, tuned by Triton, one candidate after the other;
* `parallel`: tuned by flame_accel, nothing shipped;
* `shipped`: with the configurations that come with flame_accel, others tuned;
* `nearest`: the same, and nothing tuned: other shapes take the nearest configuration.

    python benchmarks/first_step.py --config configs/gla_340M.json --modes plain parallel shipped

Seconds count from the start of the process, imports included. Tokens/s are of the steps after it.
"""

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODES = ("plain", "parallel", "shipped", "nearest")


def main() -> None:
    """Prints a line per mode and their ratios to the first one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--tokens", type=int, default=65_536, help="of a step, in one packed row")
    parser.add_argument("--context_len", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a mode")
    parser.add_argument("--save", type=Path, help="keep what `parallel` tuned in this folder")
    parser.add_argument("--child", choices=MODES)
    arguments = parser.parse_args()
    if arguments.child:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        print(json.dumps(measure_first_steps(arguments)))
        return
    first = None
    for mode in arguments.modes:
        with tempfile.TemporaryDirectory() as empty:
            cache = str(arguments.save) if arguments.save and mode == "parallel" else empty
            environment = {
                **os.environ,
                "TRITON_CACHE_DIR": f"{empty}/triton",
                "FLAME_ACCEL_CACHE": cache,
            }
            command = [sys.executable, *sys.argv, "--child", mode]
            try:
                result = subprocess.run(
                    command,
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    timeout=arguments.limit,
                )
            except subprocess.TimeoutExpired:
                print(f"{arguments.config} {mode:9} no first step in {arguments.limit:.0f} s")
                continue
        line = json.loads(result.stdout.splitlines()[-1])
        first = first or line
        print(
            f"{arguments.config} {mode:9} first step {line['first_step_seconds']:6.1f} s "
            f"(x{line['first_step_seconds'] / first['first_step_seconds']:.3f})  "
            f"{line['tokens_per_second']:9,.0f} tok/s "
            f"(x{line['tokens_per_second'] / first['tokens_per_second']:.3f})  "
            f"imports {line['import_seconds']:.1f} s, forward {line['forward_seconds']:.1f} s, "
            f"backward {line['backward_seconds']:.1f} s, {line['kernels']} kernels tuned",
            flush=True,
        )


def measure_first_steps(arguments: argparse.Namespace) -> dict[str, float]:
    """One process: a plain training loop on random tokens, as a user of fla writes it."""
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + _process_start_since_boot()
    import torch

    importlib.import_module("fla" if arguments.child == "plain" else "flame_accel")
    from transformers import AutoConfig, AutoModelForCausalLM

    tuner = None
    if arguments.child != "plain":
        from flame_accel.kernels.tuning import (
            Tuner,
            detect_gpu_name_and_capability,
            install_autotune_hook,
        )

        fresh, tunes = arguments.child == "parallel", arguments.child != "nearest"
        tuner = install_autotune_hook(
            Tuner(detect_gpu_name_and_capability(), fresh=fresh, tunes=tunes)
        )
    imported = time.time()
    torch.manual_seed(42)
    config = AutoConfig.from_pretrained(arguments.config)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    times = []
    for step in range(arguments.steps):
        batch = random_packed_batch(
            arguments.tokens, arguments.context_len, config.vocab_size, step
        )
        torch.cuda.synchronize()
        begin = time.time()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch).loss
        torch.cuda.synchronize()
        middle = time.time()
        loss.backward()
        torch.cuda.synchronize()
        end = time.time()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        times.append((begin, middle, end, time.time()))
    seconds = sorted(done - begin for begin, _, _, done in times[1:])
    begin, middle, end, done = times[0]
    return {
        "first_step_seconds": done - started,
        "import_seconds": imported - started,
        "forward_seconds": middle - begin,
        "backward_seconds": end - middle,
        "tokens_per_second": arguments.tokens / seconds[len(seconds) // 2],
        "kernels": len(tuner.tuned) if tuner else -1,
    }


def random_packed_batch(tokens: int, context_len: int, vocabulary_size: int, seed: int) -> dict:
    """Random tokens in documents of random lengths up to `context_len`, the same for a seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary_size, (1, tokens), generator=generator).cuda()
    bounds = [0]
    while bounds[-1] < tokens:
        length = int(torch.randint(context_len // 8, context_len + 1, (), generator=generator))
        bounds.append(min(bounds[-1] + length, tokens))
    bounds = torch.tensor(bounds, dtype=torch.int32, device="cuda")
    return {"input_ids": ids, "labels": ids, "cu_seqlens": bounds}


def _process_start_since_boot() -> float:
    """When this process started, in seconds since boot."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
