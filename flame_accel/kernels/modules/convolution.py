"""The short causal convolution over time in PyTorch, one filter per channel, and its single step.

y_t = sum_w weight[:, w] x_{t - W + 1 + w}, then the activation, then the residual. The state of a
sequence is its last W inputs, [N, D, W], zeros before its first token.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
    cu_seqlens: Tensor | None = None,
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
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    rows = x.reshape(*x.shape[:2], -1)
    width = weight.shape[-1]
    padded, outputs, ends = _pad_with_initial_states(rows, initial_state, width, cu_seqlens)
    y = _CausalFilter.apply(padded.float(), weight.float().mT.contiguous())
    y = y[:, 1:] if outputs is None else y[:, outputs]
    residual = None if residual is None else residual.reshape(rows.shape)
    y = _add_bias_then_silu_and_residual(
        y, bias, activation is not None, residual, x.dtype
    ).reshape(x.shape)
    if not output_final_state:
        return y, None
    if ends is None:
        return y, padded[:, -width:].mT.contiguous()
    return y, padded[0, _window_positions_before(ends, width)].mT.contiguous()


class _CausalFilter(torch.autograd.Function):
    """y_t = sum_w weight_w * x_{t+w}: [B, T - W + 1, D] from [B, T, D] with weights [W, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        length = x.shape[1] - weight.shape[0] + 1
        y = x[:, :length] * weight[0]
        for w in range(1, weight.shape[0]):
            y.addcmul_(x[:, w : w + length], weight[w])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dy, length = grads[0], grads[0].shape[1]
        dx, dweight = torch.zeros_like(x), torch.empty_like(weight)
        for w in range(weight.shape[0]):
            here = slice(w, w + length)
            dx[:, here].addcmul_(dy, weight[w])
            torch.sum(dy * x[:, here], (0, 1), out=dweight[w])
        return dx, dweight


class PaddedInputs(NamedTuple):
    """Inputs with those before each sequence in front of it; positions only if packed."""

    inputs: Tensor
    """[B, T + W, D], or [1, T + N * W, D] if packed."""
    output_positions: Tensor | None
    """[T] where the filter's output for each token is."""
    sequence_ends: Tensor | None
    """[N] where each sequence ends in `inputs`."""


def _pad_with_initial_states(
    x: Tensor, initial_states: Tensor | None, state_width: int, cu_seqlens: Tensor | None
) -> PaddedInputs:
    """Puts the W inputs before each sequence in front of it; zeros if `initial_states` is None."""
    if cu_seqlens is None:
        if initial_states is None:
            return PaddedInputs(F.pad(x, (0, 0, state_width, 0)), None, None)
        return PaddedInputs(torch.cat((initial_states.to(x.dtype).mT, x), 1), None, None)
    num_tokens, num_sequences = x.shape[1], cu_seqlens.numel() - 1
    # a sequence moves by the width of its own state and of those before it
    shifts = torch.arange(1, num_sequences + 1, device=x.device) * state_width
    slots = torch.arange(num_tokens, device=x.device)
    slots = slots + torch.repeat_interleave(shifts, cu_seqlens.diff())
    padded = x.new_zeros(1, num_tokens + num_sequences * state_width, x.shape[-1])
    padded = padded.index_copy(1, slots, x)
    if initial_states is not None:
        before = _window_positions_before(cu_seqlens[:-1] + shifts, state_width).flatten()
        padded = padded.index_copy(
            1, before, initial_states.to(x.dtype).mT.reshape(1, -1, x.shape[-1])
        )
    return PaddedInputs(padded, slots - state_width + 1, cu_seqlens[1:] + shifts)


def _window_positions_before(ends: Tensor, width: int) -> Tensor:
    """[N, W] the `width` places before each of `ends` [N]."""
    return ends[:, None] + torch.arange(-width, 0, device=ends.device)


def causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of every sequence, `x` [N, 1, D], [1, N, D] or [N, D], after the state `cache`.

    `cache` [N, D, W] is updated in place and returned with the output, shaped like `x`.
    """
    token = x.reshape(cache.shape[0], -1)
    cache.copy_(torch.cat((cache[..., 1:], token.unsqueeze(-1).to(cache.dtype)), -1))
    window = cache.float()
    y = window.sum(-1) if weight is None else (window * weight.float()).sum(-1)
    residual = None if residual is None else residual.reshape(y.shape)
    return _add_bias_then_silu_and_residual(
        y, bias, activation is not None, residual, x.dtype
    ).view(x.shape), cache


def _add_bias_then_silu_and_residual(
    y: Tensor,
    bias: Tensor | None,
    applies_silu: bool,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    y = y if bias is None else y + bias.float()
    y = F.silu(y) if applies_silu else y
    return (y if residual is None else y + residual.float()).to(dtype)
