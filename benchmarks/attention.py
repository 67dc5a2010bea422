"""Times attention without flash-attn against plain `scaled_dot_product_attention`, on one GPU.

Forward and backward in bf16, 16 heads of 64 channels, 65,536 tokens: rows of 4,096 tokens, and
documents of 1,500 tokens on average. The candidates alternate, so that clock rates and
temperature favour none; the table shows medians.

    python benchmarks/attention.py [--rounds 15]
"""

import argparse
import random
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from flame_accel.kernels.attention.flash_attention import flash_attn_func, flash_attn_varlen_func

ROWS, LENGTH, HEADS, CHANNELS = 16, 4096, 16, 64
TOKENS = ROWS * LENGTH
MEAN_DOCUMENT = 1500
WINDOW = 512
ITERATIONS = 10

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; [{TOKENS} tokens, {HEADS} "
          f"heads, {CHANNELS} channels] bf16, forward + backward, median of {rounds}")  # fmt: skip
    lengths = draw_document_lengths()
    edges = torch.tensor([0, *lengths], device="cuda").cumsum(0)
    edges_int, longest = edges.int(), max(lengths)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_func(q, k, v, causal=True)

    def ours_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_func(q, k, v, causal=True, window_size=(WINDOW - 1, 0))

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = varlen_attn(
            q, k, v, edges_int, edges_int, longest, longest, window_size=(-1, 0)
        )  # fmt: skip
        assert isinstance(o, Tensor)
        return o

    def ours_packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_varlen_func(q, k, v, edges, edges, TOKENS, TOKENS, causal=True)

    shape, packed = (ROWS, LENGTH), (TOKENS,)
    pairs = ROWS * LENGTH * (LENGTH + 1) / 2
    in_window = ROWS * (LENGTH - WINDOW / 2) * WINDOW
    in_documents = sum(n * (n + 1) / 2 for n in lengths)
    candidates = {
        "rows of 4,096: plain SDPA": (plain, shape, pairs),
        "rows of 4,096: flash_attn_func": (ours, shape, pairs),
        f"rows of 4,096, window {WINDOW}: flash_attn_func": (ours_window, shape, in_window),
        f"{len(lengths)} documents: varlen_attn alone": (kernel, packed, in_documents),
        f"{len(lengths)} documents: flash_attn_varlen_func": (ours_packed, packed, in_documents),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 3):
        for name, (function, leading, _) in candidates.items():
            milliseconds = measure_milliseconds(function, leading)
            if number >= 3:
                times[name].append(milliseconds)
    print(f"\n{'what':48} {'ms':>8} {'min':>8} {'max':>8} {'Mtok/s':>8} {'TFLOP/s':>8}")
    for name, (_, _, seen) in candidates.items():
        milliseconds = statistics.median(times[name])
        # two products forward, five backward, two operations each
        tflops = 7 * 2 * seen * HEADS * CHANNELS / milliseconds / 1e9
        print(
            f"{name:48} {milliseconds:8.3f} {min(times[name]):8.3f} {max(times[name]):8.3f}"
            f" {TOKENS / milliseconds / 1e3:8.2f} {tflops:8.1f}"
        )
    first, second, _, fourth, fifth = (statistics.median(times[name]) for name in candidates)
    print(f"\nrate of flash_attn_func: {first / second:.3f} of plain SDPA (goal: 0.95)")
    print(f"rate of flash_attn_varlen_func: {fourth / fifth:.3f} of its kernel alone")


def draw_document_lengths() -> list[int]:
    """Document lengths that sum to `TOKENS`: exponential, at least 16 tokens, seeded."""
    draw = random.Random(0)
    lengths: list[int] = []
    while (left := TOKENS - sum(lengths)) > 0:
        lengths.append(min(left, max(16, round(draw.expovariate(1 / MEAN_DOCUMENT)))))
    return lengths


def measure_milliseconds(function: Attention, leading: tuple[int, ...]) -> float:
    """Milliseconds of a forward and backward pass, by the clock of the device."""
    torch.manual_seed(0)
    shape = (*leading, HEADS, CHANNELS)
    q, k, v, grad = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.autograd.grad(function(q, k, v), leaves, grad)
    start.record()
    for _ in range(ITERATIONS):
        torch.autograd.grad(function(q, k, v), leaves, grad)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / ITERATIONS


if __name__ == "__main__":
    main()
