"""Mamba's layer in PyTorch: the selective scan, chunked, with packed documents; and its generation.

    h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t^T,    y_t = h_t C_t

(Gu and Dao, arXiv 2312.00752): a state [N] for each channel, with decays of its own. fla's layer
runs this token by token where the mamba_ssm package is missing, keeps all states for the backward
pass, and lets packed documents run into each other. Here channels go through the scan of `hgrn` a
few at a time, and again in the backward pass.

Shape letters: B batch, T tokens, S sequences, M chunks, C tokens of a chunk, D channels, N states.
"""

from typing import Any

import torch
import torch.nn.functional as F
from fla.layers.mamba import Mamba
from fla.modules.causal_conv1d import ops as convolution
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import Chunks, cut, from_chunks, to_chunks
from flame_accel.kernels.recurrence.hgrn import CHUNK, gated_scan

_on_mamba_ssm: Any = Mamba.cuda_kernels_forward

STATES = {"cpu": 1 << 22, "cuda": 1 << 28}
"""States of all tokens that exist at a time: as many channels as fit, at least one."""


def slow_forward(
    layer: Any,
    input_states: Tensor,
    last_state: dict[str, Any] | None = None,
    use_cache: bool | None = False,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`Mamba.slow_forward`: outputs, and the states of the convolution and of the scan.

    Args:
        layer: fla's `Mamba`.
        input_states: [B, T, hidden size].
        last_state: what the cache holds of the layer.
        use_cache: whether to return states.
        attention_mask: [B, T], 0 for padding.
        cu_seqlens: [S + 1] boundaries of the sequences of a packed batch (then B = 1).
        options: not of this layer.
    """
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


def fast_forward(
    layer: Any,
    hidden_states: Tensor,
    last_state: dict[str, Any] | None = None,
    use_cache: bool | None = False,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`Mamba.cuda_kernels_forward`: fla's on the mamba_ssm package, which knows no documents."""
    if cu_seqlens is None:
        return _on_mamba_ssm(layer, hidden_states, last_state, use_cache, attention_mask, **options)
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
) -> tuple[Tensor, Tensor]:
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
    num_sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    if initial_state is None:
        initial_state = x.new_zeros(num_sequences, *a.shape, dtype=torch.float32)
    chunks = cut(batch, tokens, cu_seqlens, CHUNK)
    xc, dtc, bc, cc = (to_chunks(y.unsqueeze(2), chunks).squeeze(1) for y in (x, dt, b, c))
    width = max(1, STATES[x.device.type] // bc.numel())
    parts = zip(
        xc.split(width, 2), dtc.split(width, 2), a.split(width), initial_state.split(width, 1),
        strict=True,
    )  # fmt: skip
    done = [
        checkpoint(_scan_channels, *part, bc, cc, chunks, use_reentrant=False) for part in parts
    ]
    y = torch.cat([y for y, _ in done], -1).unsqueeze(1)
    return from_chunks(y, chunks, x.dtype).squeeze(2), torch.cat([h for _, h in done], 1)


def _scan_channels(
    x: Tensor, dt: Tensor, a: Tensor, initial: Tensor, b: Tensor, c: Tensor, chunks: Chunks
) -> tuple[Tensor, Tensor]:
    """Some of the channels: [M, C, D] and [S, D, N]."""
    decays = (dt.unsqueeze(-1) * a).exp_().flatten(2)
    inputs = ((dt * x).unsqueeze(-1) * b.unsqueeze(2)).flatten(2)
    h, final = gated_scan(inputs, decays, initial.float().flatten(1), chunks)
    y = h.unflatten(2, a.shape) @ c.unsqueeze(-1)
    return y.squeeze(-1), final.unflatten(1, a.shape)
