"""Times operators of one layer with and without the packages of `model.flash_attn_4` and others.

Forward and backward in bf16, 65,536 tokens in documents of 1,500 tokens on average, at most 4,096:
softmax attention of 16 heads of 64 and 8 of 128 channels, also with deterministic gradients, and
the gated delta rule of 6 heads, 128 channels of keys and 256 of values. In turns; medians.

    python benchmarks/kernel_packages.py [--rounds 9] [--only attention]
"""

import argparse
import random
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels import install
from flame_accel.kernels.attention.flash_attention import flash_attn_varlen_func
from flame_accel.kernels.boundaries_on_host import remember_boundaries
from flame_accel.kernels.packages import (
    KERNEL_PACKAGES,
    install_package_kernels,
    package_kernels_disabled,
)

TOKENS, MEAN_DOCUMENT, LONGEST = 65_536, 1_500, 4_096
CALLS = 5

Forward = Callable[[], Tensor]


def main() -> None:
    """Prints a line for each operator."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=["attention", "gated_delta_rule"])
    arguments = parser.parse_args()
    install("triton")
    print(torch.cuda.get_device_name(), install_package_kernels(KERNEL_PACKAGES))
    cu_seqlens = draw_boundaries()
    print(f"{len(cu_seqlens) - 1} documents; ms forward + backward, GiB above the inputs")
    if arguments.only != "gated_delta_rule":
        for heads, channels in ((16, 64), (8, 128)):
            q, k, v = (leaf(TOKENS, heads, channels) for _ in range(3))
            for deterministic in (False, True):
                torch.use_deterministic_algorithms(deterministic)
                name = f"attention, {heads} heads of {channels}{', deterministic' * deterministic}"
                compare(name, lambda q=q, k=k, v=v: attend(q, k, v, cu_seqlens), arguments.rounds)
            torch.use_deterministic_algorithms(False)
    if arguments.only != "attention":
        compare("gated delta rule", prepare_gated_delta_rule(cu_seqlens), arguments.rounds)


def draw_boundaries() -> Tensor:
    """Boundaries of the documents, also known on the host."""
    draw = random.Random(0)
    numbers = [0]
    while (left := TOKENS - numbers[-1]) > 0:
        length = min(left, LONGEST, max(16, round(draw.expovariate(1 / MEAN_DOCUMENT))))
        numbers.append(numbers[-1] + length)
    cu_seqlens = torch.tensor(numbers, device="cuda", dtype=torch.int32)
    remember_boundaries(cu_seqlens, numbers)
    return cu_seqlens


def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers that are differentiated for."""
    return torch.randn(shape, device="cuda").to(dtype).requires_grad_()


def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """As fla's layer calls it."""
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, TOKENS, TOKENS, causal=True)


def prepare_gated_delta_rule(cu_seqlens: Tensor) -> Forward:
    """As fla's layer calls it in a model of 340M parameters."""
    import fla.ops.gated_delta_rule as module

    operator: Any = module.chunk_gated_delta_rule
    heads = 6
    q, k, v = (leaf(1, TOKENS, heads, size) for size in (128, 128, 256))
    g, beta = (leaf(1, TOKENS, heads) for _ in range(2))
    decays = {
        "A_log": leaf(heads, dtype=torch.float32),
        "dt_bias": leaf(heads, dtype=torch.float32),
    }
    options = {f"use_{name}_in_kernel": True for name in ("qk_l2norm", "beta_sigmoid", "gate")} | {
        "state_v_first": True
    }
    tensors = {"q": q, "k": k, "v": v, "g": g, "beta": beta} | decays
    return lambda: operator(**tensors, **options, cu_seqlens=cu_seqlens)[0]


def compare(name: str, forward: Forward, rounds: int) -> None:
    """Prints medians without and with the packages, which take turns."""
    sides = {"without": package_kernels_disabled, "with": nullcontext}
    times: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
    for number in range(rounds + 2):
        for side, context in sides.items():
            with context():
                measured = measure(forward)
            if number >= 2:
                times[side].append(measured)
    texts = []
    for side in sides:
        ahead, back, gib = (statistics.median(x) for x in zip(*times[side], strict=True))
        texts.append(f"{side} {ahead:.2f} + {back:.2f} ms, {gib:.2f} GiB")
    print(f"{name}: {'; '.join(texts)}", flush=True)


def measure(forward: Forward) -> tuple[float, float, float]:
    """Milliseconds of a forward and of a backward pass, and peak memory in GiB."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ahead = back = 0.0
    for _ in range(CALLS):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        marks[0].record()
        o = forward()
        marks[1].record()
        grad = torch.ones_like(o)
        marks[2].record()
        o.backward(grad)
        marks[3].record()
        torch.cuda.synchronize()
        ahead += marks[0].elapsed_time(marks[1]) / CALLS
        back += marks[2].elapsed_time(marks[3]) / CALLS
    return ahead, back, (torch.cuda.max_memory_allocated() - before) / 2**30


if __name__ == "__main__":
    main()
