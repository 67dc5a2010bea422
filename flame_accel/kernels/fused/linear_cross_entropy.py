"""The loss over a vocabulary from hidden states, without holding the logits of all tokens.

-log softmax(x W^T)[target], a chunk of tokens at a time: one product gives logits in the dtype of
the weights, one kernel turns them into their gradient in place (sums in fp32), two products give
the gradients of hidden states and, added up in fp32, of the weight. The backward pass multiplies
both by the gradient of the loss. Shape letters: N tokens, D channels, V rows of the head.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

CHUNK_LOGITS = 2**27
"""Logits of a chunk."""
FEWEST_TOKENS = 2048
"""Tokens of a chunk however large the vocabulary: products of fewer rows waste a GPU."""
BLOCK = 8192
"""Logits that a program works on at a time."""
NUM_WARPS = 8
SCALE_BLOCK = 2048


@triton.jit
def _cross_entropy_kernel(
    logits,
    targets,
    nats,
    ignore_index,
    l2warp_factor,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    WRITES_GRADIENT: tl.constexpr,
    HAS_L2WARP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    target = tl.load(targets + row)
    columns = tl.arange(0, BLOCK)
    largest = tl.full((), float("-inf"), dtype=tl.float32)
    total = tl.zeros((), dtype=tl.float32)
    for first in range(0, V, BLOCK):
        x = tl.load(logits + first + columns, mask=first + columns < V, other=float("-inf"))
        x = x.to(tl.float32)
        new_largest = tl.maximum(largest, tl.max(x, axis=0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(x - new_largest), axis=0)
        largest = new_largest
    lse = largest + tl.log(total)
    counts = target != ignore_index
    of_target = tl.load(logits + target, mask=counts, other=0.0).to(tl.float32)
    tl.store(nats + row, tl.where(counts, lse - of_target, 0.0))
    if WRITES_GRADIENT:
        place = V
        if HAS_L2WARP:
            for first in range(0, V, BLOCK):
                x = tl.load(logits + first + columns, mask=first + columns < V, other=float("-inf"))
                is_largest = x.to(tl.float32) == largest
                place = tl.minimum(place, tl.min(tl.where(is_largest, first + columns, V), axis=0))
        # a position without a target has no gradient but that of the penalty
        share = tl.where(counts, 1.0, 0.0)
        # others read the target's logit, and it is overwritten
        tl.debug_barrier()
        for first in range(0, V, BLOCK):
            here = first + columns
            x = tl.load(logits + here, mask=here < V, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(x - lse) * share - tl.where(here == target, share, 0.0)
            if HAS_L2WARP:
                gradient += tl.where(here == place, largest * l2warp_factor, 0.0)
            tl.store(logits + here, gradient.to(logits.dtype.element_ty), mask=here < V)


# specialized in `size`, as those of SwiGLU
@triton.jit
def _scale_kernel(x, factor, y, size, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scaled = tl.load(x + places, mask=places < size, other=0.0).to(tl.float32) * tl.load(factor)
    tl.store(y + places, scaled.to(y.dtype.element_ty), mask=places < size)


# launches have options that are no parameters
_CROSS_ENTROPY: Any = _cross_entropy_kernel
_SCALE: Any = _scale_kernel


def compute_nats_and_logit_gradients(
    logits: Tensor,
    targets: Tensor,
    nats: Tensor,
    *,
    ignore_index: int,
    l2warp_factor: float,
    writes_gradient: bool,
) -> None:
    """Writes the nats of some tokens, and the gradient of their sum over their logits.

    Args:
        logits: [N, V], contiguous; overwritten if `writes_gradient`.
        targets: [N].
        nats: [N] in fp32; 0 where there is no target.
        ignore_index: Target of positions without one.
        l2warp_factor: Factor of the largest logit in its own gradient.
        writes_gradient: Whether the gradient is wanted.
    """
    rows, vocabulary = logits.shape
    _CROSS_ENTROPY[(rows,)](
        logits, targets, nats, ignore_index, l2warp_factor, vocabulary,
        min(BLOCK, triton.next_power_of_2(vocabulary)),
        WRITES_GRADIENT=writes_gradient, HAS_L2WARP=l2warp_factor != 0.0, num_warps=NUM_WARPS,
    )  # fmt: skip


def _chunk_length_as_multiple_of_128(tokens: int, vocabulary: int) -> int:
    """So that all chunks have about as many."""
    most = max(FEWEST_TOKENS, CHUNK_LOGITS // vocabulary)
    chunks = -(-tokens // most)
    return -(-tokens // (chunks * 128)) * 128


def _add_product(total: Tensor, gradient: Tensor, x: Tensor) -> None:
    """Adds gradient^T x to `total`, which is fp32 and whose sums are."""
    if x.is_cuda and x.dtype != torch.float32:
        torch.addmm(total, gradient.t(), x, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(gradient.t().float(), x.float())


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum over tokens, computed in the dtype of x; autocast off."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        l2warp_factor: float,
    ) -> Tensor:
        tokens, vocabulary = len(x), len(weight)
        ctx.weight_dtype, weight = weight.dtype, weight.to(x.dtype)
        learns = any(ctx.needs_input_grad)
        nats = torch.empty(tokens, dtype=torch.float32, device=x.device)
        size = _chunk_length_as_multiple_of_128(tokens, vocabulary)
        buffer = x.new_empty(min(size, tokens), vocabulary)
        dx = torch.empty_like(x) if learns else None
        dweight = torch.zeros_like(weight, dtype=torch.float32) if learns else None
        for first in range(0, tokens, size):
            chunk = slice(first, min(first + size, tokens))
            logits = torch.mm(x[chunk], weight.t(), out=buffer[: chunk.stop - first])
            compute_nats_and_logit_gradients(
                logits,
                targets[chunk],
                nats[chunk],
                ignore_index=ignore_index,
                l2warp_factor=l2warp_factor,
                writes_gradient=learns,
            )
            if dx is not None and dweight is not None:
                torch.mm(logits, weight, out=dx[chunk])
                _add_product(dweight, logits, x[chunk])
        ctx.save_for_backward(dx, dweight)
        return nats.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = ctx.saved_tensors
        dx = _scale_and_cast(dx, grads[0], dx.dtype) if ctx.needs_input_grad[0] else None
        dweight = (
            _scale_and_cast(dweight, grads[0], ctx.weight_dtype)
            if ctx.needs_input_grad[1]
            else None
        )
        return dx, dweight, None, None, None


def _scale_and_cast(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """X times a number, multiplied in fp32: PyTorch would round the number to the dtype of x."""
    y = torch.empty_like(x, dtype=dtype)
    _SCALE[(-(-x.numel() // SCALE_BLOCK),)](x, factor, y, x.numel(), SCALE_BLOCK)
    return y


def fused_linear_cross_entropy_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcapping: float | None = None,
    num_chunks: int = 8,
    reduction: str = "mean",
    use_l2warp: bool = False,
    l2_penalty_factor: float = 1e-4,
    accumulate_grad_in_fp32: bool = True,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """As `kernels.modules.loss.fused_linear_cross_entropy_loss`, for calls that are supported."""
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        nats = _LinearCrossEntropy.apply(
            x.to(dtype).contiguous(),
            # its gradient keeps the precision in which it is added up
            weight,
            target.contiguous(),
            ignore_index,
            l2_penalty_factor / len(x) if use_l2warp else 0.0,
        )
    if reduction == "sum":
        return nats
    return nats / (target != ignore_index).sum()


def supports_plain_loss_unless_l2warp_mean(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcapping: float | None = None,
    num_chunks: int = 8,
    reduction: str = "mean",
    use_l2warp: bool = False,
    l2_penalty_factor: float = 1e-4,
    accumulate_grad_in_fp32: bool = True,
    process_group: ProcessGroup | None = None,
) -> bool:
    """Whether a call is for ours: a whole weight without a bias, and logits as they are."""
    plain = (label_smoothing, logit_scale, logit_softcapping) == (0.0, 1.0, None)
    whole = bias is None and process_group is None and not isinstance(weight, DTensor)
    # a penalty is added to a mean, and not divided by the number of targets
    return plain and whole and x.numel() > 0 and (reduction == "sum" or not use_l2warp)
