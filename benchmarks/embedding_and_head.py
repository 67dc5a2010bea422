"""Times the two ends of a model on one GPU: the embedding and the head with its loss.

Forward and backward under bf16 autocast over fp32 weights, a vocabulary of 32,000, width 1,024,
token ids as skewed as words are. Candidates alternate; the tables show medians, memory above the
inputs, and relative errors of the loss and both gradients against fp32.

    python benchmarks/embedding_and_head.py [--tokens 32768] [--rounds 10] [--sweep]
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from fla.modules.fused_cross_entropy import cross_entropy_loss
from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss
from torch import Tensor

from flame_accel import kernels
from flame_accel.kernels.fused import embedding, linear_cross_entropy

VOCABULARY, WIDTH = 32_000, 1024
ITERATIONS = 5

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Cost(NamedTuple):
    """Of one forward and backward pass."""

    milliseconds: float
    gib: float
    """Peak memory above what was there before."""


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sweep", action="store_true", help="other launch parameters of ours")
    arguments = parser.parse_args()
    kernels.install()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.tokens} tokens")
    torch.manual_seed(0)
    ids = torch.rand(arguments.tokens, device="cuda").pow(6).mul(VOCABULARY).long()
    compare_embeddings(ids, arguments.rounds)
    compare_heads(ids, arguments.rounds, sweep=arguments.sweep)


def compare_embeddings(ids: Tensor, rounds: int) -> None:
    """Prints the costs of PyTorch's gradient and of ours, and whether each repeats its bits."""
    weight = torch.randn(VOCABULARY, WIDTH, device="cuda", requires_grad=True)
    cotangent = torch.randn(len(ids), WIDTH, device="cuda")

    def run(ours: bool) -> Tensor:
        apply = embedding._Embedding.apply
        y = apply(weight, ids, None) if ours else F.embedding(ids, weight)
        return torch.autograd.grad(y, weight, cotangent)[0]

    reference = torch.zeros(VOCABULARY, WIDTH, device="cuda", dtype=torch.float64)
    reference.index_add_(0, ids, cotangent.double())
    costs = measure([lambda: run(False), lambda: run(True)], rounds)
    for name, ours, cost in zip(("PyTorch", "ours"), (False, True), costs, strict=True):
        gradients = [run(ours) for _ in range(5)]
        repeats = all(torch.equal(gradients[0], x) for x in gradients)
        error = relative_error(gradients[0], reference)
        print(f"embedding, {name:8} {cost.milliseconds:6.3f} ms {cost.gib:5.2f} GiB  "
              f"error {error:.1e}  repeats its bits: {repeats}")  # fmt: skip


def compare_heads(ids: Tensor, rounds: int, *, sweep: bool) -> None:
    """Prints the costs and errors of the plain head, fla's fused one and ours."""
    x = torch.randn(len(ids), WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, device="cuda").mul_(0.05).requires_grad_()
    targets = ids.roll(-1)
    targets[::50] = -100

    def plain(x: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return cross_entropy_loss(F.linear(x, weight), targets, inplace_backward=True)[0].sum()

    def fla(x: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return fused_linear_cross_entropy_loss(x, targets, weight, reduction="sum")

    def ours(x: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy.fused_linear_cross_entropy_loss(
            x, targets, weight, reduction="sum"
        )

    def run(loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            value = loss(x, targets, weight) / len(ids)
        return value.detach(), *torch.autograd.grad(value, (x, weight))

    references = compute_reference(x, targets, weight)
    losses = {"plain": plain, "fla fused": fla, "ours": ours}
    costs = measure([lambda loss=loss: run(loss) for loss in losses.values()], rounds)
    for name, cost in zip(losses, costs, strict=True):
        errors = [relative_error(a, b) for a, b in zip(run(losses[name]), references, strict=True)]
        told = " ".join(f"{error:.1e}" for error in errors)
        print(f"head, {name:10} {cost.milliseconds:7.2f} ms {cost.gib:5.2f} GiB  errors {told}")
    if sweep:
        sweep_launch_parameters(lambda: run(ours), len(ids), rounds)


def sweep_launch_parameters(run: Callable[[], object], tokens: int, rounds: int) -> None:
    """Prints the costs of ours with other chunks, and of its kernel with other blocks."""
    module = linear_cross_entropy
    logits = torch.randn(4096, VOCABULARY, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(VOCABULARY, (4096,), device="cuda")
    nats = torch.empty(4096, device="cuda")

    def kernel() -> None:
        module.compute_nats_and_logit_gradients(
            logits, targets, nats, ignore_index=-100, l2warp_factor=0.0, writes_gradient=True
        )

    before = module.BLOCK, module.NUM_WARPS, module.CHUNK_LOGITS
    for module.BLOCK, module.NUM_WARPS in product((4096, 8192, 16384, 32768), (4, 8, 16, 32)):
        [cost] = measure([kernel], rounds)
        rate = 2 * logits.nbytes / cost.milliseconds / 1e9
        print(f"kernel, block {module.BLOCK} warps {module.NUM_WARPS}: "
              f"{cost.milliseconds:.3f} ms, {rate:.2f} TB/s")  # fmt: skip
    module.BLOCK, module.NUM_WARPS = before[:2]
    for module.CHUNK_LOGITS in (2**26, 2**27, 2**28, 2**29):
        [cost] = measure([run], rounds)
        print(f"chunk of {module._chunk_length_as_multiple_of_128(tokens, VOCABULARY)} tokens: "
              f"{cost.milliseconds:.2f} ms, {cost.gib:.2f} GiB")  # fmt: skip
    module.CHUNK_LOGITS = before[2]


def compute_reference(x: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in fp32."""
    wide, matrix = x.detach().float().requires_grad_(), weight.detach().clone().requires_grad_()
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    loss = F.cross_entropy(wide @ matrix.T, targets, reduction="sum") / len(x)
    gradients = torch.autograd.grad(loss, (wide, matrix))
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return loss.detach(), *gradients


def measure(candidates: Sequence[Callable[[], object]], rounds: int) -> list[Cost]:
    """The cost of each candidate: medians over rounds in which all take their turns."""
    times: list[list[float]] = [[] for _ in candidates]
    peaks = []
    for candidate in candidates:
        candidate()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        candidate()
        peaks.append((torch.cuda.max_memory_allocated() - before) / 2**30)
    for _ in range(rounds):
        for candidate, milliseconds in zip(candidates, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(ITERATIONS):
                candidate()
            end.record()
            torch.cuda.synchronize()
            milliseconds.append(begin.elapsed_time(end) / ITERATIONS)
    return [Cost(statistics.median(x), peak) for x, peak in zip(times, peaks, strict=True)]


def relative_error(value: Tensor, reference: Tensor) -> float:
    """The norm of the difference over that of the reference."""
    reference = reference.double()
    return ((value.double() - reference).norm() / reference.norm()).item()


if __name__ == "__main__":
    main()
