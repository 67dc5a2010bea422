"""The short causal convolution over time in PyTorch, one filter per channel, and its single step for generation.

y_t = sum_w weight[:, w] x_{t - W + 1 + w}, then the activation, then the residual. The state of a sequence is its last W
inputs, [N, D, W], zeros before its first token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.precision import without_autocast


@without_autocast
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    activation: str | None = None,
    backend: str | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: Any = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Outputs [B, T, D] and final states [N, D, W] or None, both in the dtype of `x`.

    Args:
        x: [B, T, D].
        weight: [D, W].
        bias: [D].
        residual: [B, T, D], added last.
        initial_state: [N, D, W].
        output_final_state: whether to return the final states.
        activation: "silu", "swish" or None.
        backend: which kernel fla would use.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        cu_seqlens_cpu: the same on the host; not needed here.
        chunk_indices: for fla's kernels.
        cp_context: for fla's context parallelism, which needs Triton.
        options: of fla's other kernels.
    """
    if cp_context is not None:
        raise UserError(
            "causal_conv1d has no context parallelism in PyTorch",
            remedy="run without context parallelism",
        )
    shape = x.shape
    x = x.reshape(*x.shape[:2], -1)
    width = weight.shape[-1]
    padded, slots, ends = _prepend_states(x, initial_state, width, cu_seqlens)
    y = F.conv1d(
        padded.mT.float(), weight.float().unsqueeze(1), groups=x.shape[-1], bias=_float(bias)
    ).mT
    y = y[:, slots] if slots is not None else y[:, 1:]
    final = None
    if output_final_state:
        if ends is None:
            final = padded[:, -width:].mT.contiguous()
        else:
            final = padded[0, ends[:, None] + torch.arange(-width, 0)].mT.contiguous()
    y = _finish(y, activation, None if residual is None else residual.reshape(x.shape), x.dtype)
    return y.reshape(shape), final


def _prepend_states(
    x: Tensor, initial: Tensor | None, width: int, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Inputs with the W inputs before each sequence in front of it; where its outputs are and where it ends."""
    num_sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    if initial is None:
        initial = x.new_zeros(num_sequences, x.shape[-1], width)
    before = initial.to(x.dtype).mT
    if cu_seqlens is None:
        return torch.cat((before, x), 1), None, None
    sequence = torch.repeat_interleave(torch.arange(num_sequences), cu_seqlens.diff())
    slots = torch.arange(x.shape[1]) + (sequence + 1) * width
    ends = cu_seqlens[1:] + torch.arange(1, num_sequences + 1) * width
    starts = cu_seqlens[:-1] + torch.arange(num_sequences) * width
    padded = x.new_zeros(1, x.shape[1] + num_sequences * width, x.shape[-1])
    padded = padded.index_copy(1, slots, x)
    padded = padded.index_copy(
        1, (starts[:, None] + torch.arange(width)).flatten(), before.reshape(1, -1, x.shape[-1])
    )
    return padded, slots - width + 1, ends


def causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of every sequence, `x` [N, 1, D], [1, N, D] or [N, D]; `cache` [N, D, W] is updated in place."""
    token = x.reshape(cache.shape[0], -1)
    cache.copy_(torch.cat((cache[..., 1:], token.unsqueeze(-1).to(cache.dtype)), -1))
    window = cache.float()
    y = window.sum(-1) if weight is None else (window * weight.float()).sum(-1)
    y = y if bias is None else y + bias.float()
    residual = None if residual is None else residual.reshape(y.shape)
    return _finish(y, activation, residual, x.dtype).view(x.shape), cache


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def _finish(
    y: Tensor, activation: str | None, residual: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if activation is not None:
        y = F.silu(y)
    if residual is not None:
        y = y + residual
    return y.to(dtype)
