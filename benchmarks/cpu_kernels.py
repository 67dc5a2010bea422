"""How fast models train with the PyTorch kernels on a CPU, and how that depends on the length.

Models of 4 layers x 256 channels, vocabulary 4,096, in fp32; a step is forward, backward and AdamW
on random tokens. For each model: tokens/s at length 512 with batch 8, then the time per token at
several lengths relative to the first of them, in batches of 8,192 tokens.

    OMP_NUM_THREADS=2 python benchmarks/cpu_kernels.py --models gla delta_net --lengths 512 8192
"""

import argparse
import multiprocessing
import os
import statistics
import time
import warnings

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import flame_accel

SHAPE = {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 4096, "hidden_ratio": 4}
MODELS = {
    "gla": {"num_heads": 4},
    "delta_net": {"num_heads": 4},
    "gated_deltanet": {"num_heads": 2, "head_dim": 96, "expand_v": 2},
    "mamba2": {"num_heads": 8, "head_dim": 64, "state_size": 128},
    "rwkv7": {"head_dim": 64},
    "kda": {"num_heads": 4, "head_dim": 64},
}
"""Fields of each config in addition to `SHAPE`. Mamba2 has no feed-forward network."""
TOKENS = 8192
"""Tokens of a batch in the comparison of lengths; the first measurement uses half as many."""


def build_model_and_optimizer(name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The model, initialised from a fixed seed, and its optimizer."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(name, **{**SHAPE, **MODELS[name]})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model, torch.optim.AdamW(model.parameters(), lr=3e-4)


def measure_seconds_per_token(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: int, length: int, steps: int
) -> float:
    """Median over `steps` training steps, after one warm-up step."""
    tokens = torch.randint(0, SHAPE["vocab_size"], (batch, length))
    elapsed_seconds = []
    for _ in range(steps + 1):
        started_at = time.perf_counter()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        elapsed_seconds.append(time.perf_counter() - started_at)
    return statistics.median(elapsed_seconds[1:]) / (batch * length)


def measure_model(name: str, lengths: list[int], steps: int) -> str:
    """One line of the table."""
    model, optimizer = build_model_and_optimizer(name)
    num_parameters = sum(p.numel() for p in model.parameters())
    short = measure_seconds_per_token(model, optimizer, 8, 512, steps)
    times = [measure_seconds_per_token(model, optimizer, TOKENS // n, n, steps) for n in lengths]
    ratios = "".join(f"{t / times[0]:8.2f}" for t in times)
    return f"{name:14} {num_parameters / 1e6:6.1f}  {1 / short:14,.0f}  {ratios}"


def main() -> None:
    """Prints a table: one line per model, each measured in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--steps", type=int, default=5, help="steps of which the median is taken")
    arguments = parser.parse_args()
    lengths = arguments.lengths
    print(
        f"flame_accel {flame_accel.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    print("model          Mparam  tokens/s 8x512  " + "".join(f"{n:>8}" for n in lengths))
    for name in arguments.models:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            print(process.apply(measure_model, (name, lengths, arguments.steps)), flush=True)


if __name__ == "__main__":
    main()
