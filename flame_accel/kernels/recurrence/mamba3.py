"""Mamba-3's layer, one input and output per head, on the operators of simple GLA.

    S_t = exp(dt_t A_t) (S_{t-1} + dt_t (1 - l_t) B_{t-1} x_{t-1}^T) + dt_t l_t B_t x_t^T
    y_t = S_t^T C_t + D x_t

(Mamba-3, ICLR 2026): the trapezoidal rule with data-dependent weights l and rates A, where B and C
are rotated by angles that accumulate over the tokens. B_t x_t^T enters the state with weight
dt_t l_t at its own token and with dt_{t+1} (1 - l_{t+1}) at the next. Linear attention with the sum
of both as a factor of the keys gives y, except that a token must not read its own x with the second
weight; this is subtracted. fla's layer runs only on the mamba_ssm package. The form with several
inputs per head (`is_mimo`) is not here.

Shape letters: B batch, T tokens, N sequences, H heads, K width of B and C, V width of a head, R
angles.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from fla.layers.mamba3 import Mamba3, is_fast_path_available
from fla.layers.utils import (
    get_layer_cache,
    repad_hidden_states,
    unpad_hidden_states,
    update_layer_cache,
)
from fla.models.cache_utils import Cache
from fla.ops import simple_gla
from torch import Tensor, nn

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.padded_rows import (
    LayerOutput,
    check_no_padding_after_cached_tokens,
)
from flame_accel.kernels.recurrence.sequences import (
    cumsum_per_sequence,
    first_tokens,
    last_tokens,
    value_of_next_token,
)

_mamba_ssm_forward: Any = Mamba3.forward

Mamba3State = tuple[Tensor, Tensor, Tensor, Tensor]
"""Angles [N, H, R], S [N, H, V, K], last rotated B [N, 1, H, K], last x [N, H, V]."""


def forward_mamba3(
    layer: Mamba3,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    cu_seqlens: torch.LongTensor | None = None,
    **options: Any,
) -> LayerOutput:
    """`Mamba3.forward`: outputs [B, T, hidden size], None, and the cache.

    Args:
        layer: fla's `Mamba3`.
        hidden_states: [B, T, hidden size].
        attention_mask: [B, T], 0 for padding.
        past_key_values: fla's cache; for this layer it has a `Mamba3State`.
        use_cache: whether to update the cache.
        output_attentions: without effect.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        options: without effect.

    Raises:
        UserError: The layer has `is_mimo`.
    """
    if layer.is_mimo and not is_fast_path_available:
        raise UserError(
            "Mamba-3 with is_mimo runs only on the mamba_ssm package, which is not available",
            where="model.config",
            remedy="set is_mimo to false, or use a GPU with mamba_ssm and TileLang installed",
        )
    if layer.is_mimo:
        return _mamba_ssm_forward(
            layer, hidden_states, attention_mask, past_key_values, use_cache,
            output_attentions, cu_seqlens=cu_seqlens, **options,
        )  # fmt: skip
    last_state = get_layer_cache(layer, past_key_values)
    check_no_padding_after_cached_tokens(
        layer, attention_mask, hidden_states.shape[1], has_past=last_state is not None
    )
    batch, tokens, _ = hidden_states.shape
    x, indices = hidden_states, None
    if last_state is None and tokens > 1:
        x, indices, cu_seqlens = unpad_hidden_states(x, cu_seqlens, attention_mask, tokens)
    past = None if last_state is None else last_state["recurrent_state"]
    y, state = _run_layer_on_unpadded_tokens(layer, x, past, cu_seqlens)
    if use_cache or last_state is not None:
        update_layer_cache(layer, past_key_values, recurrent_state=state, offset=tokens)
    return repad_hidden_states(y, indices, batch, tokens), None, past_key_values


def _run_layer_on_unpadded_tokens(
    layer: Mamba3, hidden_states: Tensor, past: Mamba3State | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Mamba3State]:
    """Outputs [B, T, hidden size] of the layer, and the state after the last tokens."""
    z, x, b, c, dt, rate, trap, angles = layer._project_and_split(hidden_states)
    x, z = (y.unflatten(-1, (layer.num_heads, layer.head_dim)) for y in (x, z))
    dt = F.softplus(dt + layer.dt_bias).float()
    # weights of a token at itself, and of the previous token at this one
    weight = dt * trap.float().sigmoid()
    previous_weight = dt - weight
    past_angles, initial_state = None, None
    if past is not None:
        past_angles, past_state, past_k, past_x = past
        # the last token of the past enters with its second weight only now
        late_weight = first_tokens(previous_weight, cu_seqlens)[..., None, None]
        late_update = late_weight * past_x.unsqueeze(-1) * past_k.squeeze(1).unsqueeze(-2)
        initial_state = past_state + late_update
    next_weight = value_of_next_token(previous_weight, cu_seqlens)
    angles = angles.float().tanh().unsqueeze(2) * math.pi * dt.unsqueeze(-1)
    angles = _cumulative_angles_mod_2_pi(angles, past_angles, cu_seqlens)
    q = _rotate_neighboring_channel_pairs(
        _normalize_groups_and_repeat_for_heads(layer, layer.C_norm, c) + layer.C_bias.squeeze(1),
        angles,
    )
    k = _rotate_neighboring_channel_pairs(
        _normalize_groups_and_repeat_for_heads(layer, layer.B_norm, b) + layer.B_bias.squeeze(1),
        angles,
    )
    operator: Any = simple_gla.chunk_simple_gla
    if hidden_states.shape[1] == 1:
        operator = simple_gla.fused_recurrent_simple_gla
    y, state = operator(
        q=q.to(x.dtype),
        k=(k * (weight + next_weight).unsqueeze(-1)).to(x.dtype),
        v=x,
        g=layer._compute_a(rate) * dt,
        scale=1.0,
        initial_state=initial_state,
        output_final_state=True,
        state_v_first=True,
        cu_seqlens=cu_seqlens,
    )
    skip = layer.D - next_weight * (q * k).sum(-1)
    y = y + skip.unsqueeze(-1) * x
    if layer.is_outproj_norm:
        y = layer.norm(y.flatten(2), z.flatten(2))
    else:
        y = (y * F.silu(z.float())).flatten(2)
    earlier = (None,) * 3 if past is None else (past_angles, past[2].squeeze(1), past[3])
    last_angles, last_k, last_x = (
        last_tokens(value, cu_seqlens, before)
        for value, before in zip((angles, k, x), earlier, strict=True)
    )
    return layer.out_proj(y.to(x.dtype)), (last_angles, state, last_k.unsqueeze(1), last_x)


def _normalize_groups_and_repeat_for_heads(layer: Mamba3, norm: nn.Module, x: Tensor) -> Tensor:
    """Normalised B or C [B, T, H, K] in fp32 from [B, T, groups K]."""
    x = norm(x.unflatten(-1, (layer.n_groups, layer.ssm_state_size))).float()
    return x.repeat_interleave(layer.num_heads // layer.n_groups, 2)


def _rotate_neighboring_channel_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates the first R pairs of neighbouring channels of x [B, T, H, K] by [B, T, H, R]."""
    width = 2 * angles.shape[-1]
    left, right = x[..., :width].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    rotated = torch.stack([left * cos - right * sin, left * sin + right * cos], -1)
    return torch.cat([rotated.flatten(-2), x[..., width:]], -1)


def _cumulative_angles_mod_2_pi(
    angles: Tensor, initial_angles: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """Running sums over each sequence modulo 2 pi; in double, as they grow with its length."""
    sums = cumsum_per_sequence(angles.double(), cu_seqlens, initial_angles)
    return sums.remainder(2 * math.pi).float()
