"""Mamba2's layer on the operators of simple GLA, in training and generation, also packed.

    S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T,    y_t = S_t^T C_t + D x_t

(Dao and Gu, arXiv 2405.21060), A and dt per head: linear attention with C as queries, B as keys,
dt x as values. Without the mamba_ssm package fla's layer forms all products of a chunk of 256
tokens one by one, carries states across packed documents, and gives heads the wrong group of B and
C if there are several groups. The operators are called by fla's names: kernels or PyTorch,
whichever is installed.

Shape letters: B batch, T tokens, N sequences, H heads, G groups, K width of B and C, V width
of a head.
"""

from typing import Any

import torch.nn.functional as F
from fla.layers.mamba2 import Mamba2
from fla.layers.utils import get_layer_cache, update_layer_cache
from fla.models.cache_utils import Cache
from fla.modules.causal_conv1d import ops as convolution
from fla.ops import simple_gla
from torch import Tensor

from flame_accel.kernels.modules.padded_rows import (
    LayerOutput,
    check_no_padding_after_cached_tokens,
)


def forward_mamba2_with_padding_masked(
    layer: Mamba2,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> LayerOutput:
    """`Mamba2.forward`: outputs [B, T, hidden size], None, and the cache.

    Args:
        layer: fla's `Mamba2`.
        hidden_states: [B, T, hidden size].
        attention_mask: [B, T], 0 for padding.
        past_key_values: fla's cache; for this layer it has the last inputs of the convolution
            [N, channels, kernel size] and the state [N, H, V, K].
        use_cache: whether to update the cache.
        output_attentions: without effect.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        options: without effect.
    """
    if hidden_states.shape[1] == 0:
        return hidden_states, None, past_key_values
    last_state = get_layer_cache(layer, past_key_values)
    check_no_padding_after_cached_tokens(
        layer, attention_mask, hidden_states.shape[1], has_past=last_state is not None
    )
    past = last_state or {"conv_state": None, "recurrent_state": None}
    mask = None if attention_mask is None or last_state is not None else attention_mask[..., None]
    projected = layer.in_proj(hidden_states if mask is None else hidden_states * mask)
    sizes = [layer.intermediate_size, layer.conv_dim, layer.num_heads]
    gate, xbc, dt = projected.split(sizes, -1)
    fused = layer.activation in ("silu", "swish")
    convolve: Any = convolution.causal_conv1d
    xbc, conv_state = convolve(
        x=xbc if mask is None else xbc * mask,
        weight=layer.conv1d.weight.squeeze(1),
        bias=layer.conv1d.bias,
        activation="silu" if fused else None,
        initial_state=past["conv_state"],
        output_final_state=bool(use_cache),
        cu_seqlens=cu_seqlens,
    )
    xbc = xbc if fused else layer.act(xbc)
    xbc = xbc if mask is None else xbc * mask
    y, state = _run_ssm_as_simple_gla(
        layer, xbc, dt, past["recurrent_state"], bool(use_cache), cu_seqlens
    )
    y = y * layer.act(gate) if layer.norm is None else layer.norm(y, gate)
    update_layer_cache(
        layer,
        past_key_values,
        recurrent_state=state,
        conv_state=conv_state,
        offset=hidden_states.shape[1],
    )
    return layer.out_proj(y.to(hidden_states.dtype)), None, past_key_values


def _run_ssm_as_simple_gla(
    layer: Mamba2,
    xbc: Tensor,
    dt_before_softplus: Tensor,
    initial_state: Tensor | None,
    use_cache: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Outputs [B, T, H V] and final states [N, H, V, K].

    Args:
        layer: fla's `Mamba2`.
        xbc: x, B and C [B, T, H V + 2 G K], after the convolution.
        dt_before_softplus: step sizes before bias and softplus [B, T, H].
        initial_state: [N, H, V, K]; zeros if None.
        use_cache: whether to return final states.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    bc_width = layer.n_groups * layer.ssm_state_size
    x, b, c = xbc.split([layer.intermediate_size, bc_width, bc_width], -1)
    x = x.unflatten(-1, (layer.num_heads, layer.head_dim))
    per_group = layer.num_heads // layer.n_groups
    k, q = (y.unflatten(-1, (layer.n_groups, -1)).repeat_interleave(per_group, 2) for y in (b, c))
    dt = F.softplus(dt_before_softplus.float() + layer.dt_bias).clamp(*layer.dt_limit)
    operator: Any = simple_gla.chunk_simple_gla
    if xbc.shape[1] == 1:
        operator = simple_gla.fused_recurrent_simple_gla
    y, state = operator(
        q=q,
        k=k,
        v=(x * dt.unsqueeze(-1)).to(x.dtype),
        g=-layer.A_log.float().exp() * dt,
        scale=1.0,
        initial_state=initial_state,
        output_final_state=use_cache,
        state_v_first=True,
        cu_seqlens=cu_seqlens,
    )
    return (y + x * layer._get_D(expand_to_head_dim=True)).flatten(2), state
