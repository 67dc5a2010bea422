"""Mamba's layer in PyTorch, in training and generation: the selective scan, packed or not.

    h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t^T,    y_t = h_t C_t

(Gu and Dao, arXiv 2312.00752): a state [N] for each channel, with decays of its own. Without the
mamba_ssm package fla's layer runs this token by token, keeps all states for the backward pass, and
carries states across packed documents. Here groups of channels go through the scan of `hgrn` one
after the other, and again in the backward pass.

Shape letters: B batch, T tokens, S sequences, M chunks, C tokens of a chunk, D channels, N width of
a state.
"""

from typing import Any

import torch
import torch.nn.functional as F
from fla.layers.mamba import Mamba
from fla.modules.causal_conv1d import ops as convolution
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flame_accel.kernels.modules.padded_rows import check_no_padding_after_cached_tokens
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    ChunkLayout,
    build_chunk_layout,
    from_padded_chunk_batch,
    to_padded_fp32_chunk_batch,
)
from flame_accel.kernels.recurrence.hgrn import CHUNK_SIZE, gated_scan
from flame_accel.kernels.recurrence.sequences import OutputsAndFinalStates, zeros_per_sequence

_mamba_ssm_forward: Any = Mamba.cuda_kernels_forward

OutputConvStateAndScanState = tuple[Tensor, Tensor | None, Tensor | None]
"""The states are None unless they are to be cached."""

MAX_STATE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Elements of the states of all tokens that a group of channels may have; at least one channel."""


def slow_forward(
    layer: Mamba,
    input_states: Tensor,
    last_state: dict[str, Any] | None = None,
    use_cache: bool | None = False,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> OutputConvStateAndScanState:
    """`Mamba.slow_forward`: outputs, and the states of the convolution and of the scan.

    Args:
        layer: fla's `Mamba`.
        input_states: [B, T, hidden size].
        last_state: "conv_state" and "recurrent_state" of the cache, or None.
        use_cache: whether to return states.
        attention_mask: [B, T], 0 for padding.
        cu_seqlens: [S + 1] boundaries of the sequences of a packed batch (then B = 1).
        options: without effect.
    """
    check_no_padding_after_cached_tokens(
        layer, attention_mask, input_states.shape[1], has_past=last_state is not None
    )
    past = last_state or {"conv_state": None, "recurrent_state": None}
    mask = None if attention_mask is None or last_state is not None else attention_mask[..., None]
    x, gate = layer.in_proj(input_states).chunk(2, -1)
    convolve: Any = convolution.causal_conv1d
    x, conv_state = convolve(
        x=x if mask is None else x * mask,
        weight=layer.conv1d.weight.squeeze(1),
        bias=layer.conv1d.bias,
        activation=layer.activation,
        initial_state=past["conv_state"],
        output_final_state=bool(use_cache),
        cu_seqlens=cu_seqlens,
    )
    x = x if mask is None else x * mask
    sizes = [layer.dt_rank, layer.ssm_state_size, layer.ssm_state_size]
    dt, b, c = layer.x_proj(x).split(sizes, -1)
    dt = F.softplus(layer.dt_proj(dt).float())
    a = -layer.A_log.float().exp()
    y, state = selective_scan(x, dt, a, b, c, past["recurrent_state"], cu_seqlens)
    y = (y + x * layer.D) * layer.act(gate)
    return layer.out_proj(y.to(input_states.dtype)), conv_state, state if use_cache else None


def forward_mamba_ssm_unless_packed(
    layer: Mamba,
    hidden_states: Tensor,
    last_state: dict[str, Any] | None = None,
    use_cache: bool | None = False,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> OutputConvStateAndScanState:
    """`Mamba.cuda_kernels_forward`: fla's (package mamba_ssm), except for packed documents."""
    check_no_padding_after_cached_tokens(
        layer, attention_mask, hidden_states.shape[1], has_past=last_state is not None
    )
    if cu_seqlens is None:
        return _mamba_ssm_forward(
            layer, hidden_states, last_state, use_cache, attention_mask, **options
        )
    return slow_forward(layer, hidden_states, last_state, use_cache, attention_mask, cu_seqlens)


@without_autocast
def selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndFinalStates:
    """Outputs y [B, T, D] in the dtype of `x`, and final states [S, D, N] in fp32.

    Args:
        x: [B, T, D].
        dt: [B, T, D] step sizes, > 0.
        a: [D, N] rates, < 0.
        b: [B, T, N].
        c: [B, T, N].
        initial_state: like the final states; zeros if None.
        cu_seqlens: [S + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    batch, tokens, _ = x.shape
    if initial_state is None:
        initial_state = zeros_per_sequence(x, cu_seqlens, *a.shape)
    layout = build_chunk_layout(batch, tokens, cu_seqlens, CHUNK_SIZE)
    xc, dtc, bc, cc = (
        to_padded_fp32_chunk_batch(y.unsqueeze(2), layout).squeeze(1) for y in (x, dt, b, c)
    )
    group_size = max(1, MAX_STATE_ELEMENTS[x.device.type] // bc.numel())
    groups = zip(
        xc.split(group_size, 2), dtc.split(group_size, 2), a.split(group_size),
        initial_state.split(group_size, 1), strict=True,
    )  # fmt: skip
    results = [
        checkpoint(_selective_scan_of_channel_group, *group, bc, cc, layout, use_reentrant=False)
        for group in groups
    ]
    y = torch.cat([y for y, _ in results], -1).unsqueeze(1)
    return from_padded_chunk_batch(y, layout, x.dtype).squeeze(2), torch.cat(
        [h for _, h in results], 1
    )


def _selective_scan_of_channel_group(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    initial_state: Tensor,
    b: Tensor,
    c: Tensor,
    layout: ChunkLayout,
) -> OutputsAndFinalStates:
    """Outputs [M, C, D] and final states [S, D, N] of D of the channels."""
    decays = (dt.unsqueeze(-1) * a).exp_().flatten(2)
    inputs = ((dt * x).unsqueeze(-1) * b.unsqueeze(2)).flatten(2)
    h, final_state = gated_scan(inputs, decays, initial_state.float().flatten(1), layout)
    y = h.unflatten(2, a.shape) @ c.unsqueeze(-1)
    return y.squeeze(-1), final_state.unflatten(1, a.shape)
