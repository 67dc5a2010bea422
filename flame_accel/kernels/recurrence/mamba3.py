"""Mamba-3's layer, one input and output per head, on the operators of simple GLA.

    S_t = exp(dt_t A_t) (S_{t-1} + dt_t (1 - l_t) B_{t-1} x_{t-1}^T) + dt_t l_t B_t x_t^T
    y_t = S_t^T C_t + D x_t

(Mamba-3, ICLR 2026): the trapezoid rule with data-dependent weights l and rates A, where B and C
are turned by angles that add up over the tokens. A token is stored with its own weight dt_t l_t and
that of its successor, dt_{t+1} (1 - l_{t+1}); linear attention with both as one factor of the keys
gives y but for the token itself, which the second weight must not reach. fla's layer runs on the
mamba_ssm package alone. The form with several inputs per head (`is_mimo`) is not here.

Shape letters: B batch, T tokens, N sequences, H heads, K states, V channels of a head, R angles.
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
from fla.ops import simple_gla
from torch import Tensor

from flame_accel.config.errors import UserError

_on_mamba_ssm: Any = Mamba3.forward

State = tuple[Tensor, Tensor, Tensor, Tensor]
"""Angles [N, H, R], S [N, H, V, K], last turned B [N, 1, H, K], last x [N, H, V]."""


def forward(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    cu_seqlens: torch.LongTensor | None = None,
    **options: Any,
) -> tuple[Tensor, None, Any]:
    """`Mamba3.forward`: outputs [B, T, hidden size], None, and the cache.

    Args:
        layer: fla's `Mamba3`.
        hidden_states: [B, T, hidden size].
        attention_mask: [B, T], 0 for padding.
        past_key_values: fla's cache; see `State` for what it holds of this layer.
        use_cache: whether to update it.
        output_attentions: not supported by this layer.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        options: not of this layer.

    Raises:
        UserError: The layer has `is_mimo`.
    """
    if layer.is_mimo and not is_fast_path_available:
        raise UserError(
            "Mamba-3 with is_mimo has no implementation but that of mamba_ssm",
            where="model.config",
            remedy="set is_mimo to false, or use a GPU with mamba_ssm and TileLang installed",
        )
    if layer.is_mimo:
        return _on_mamba_ssm(
            layer, hidden_states, attention_mask, past_key_values, use_cache,
            output_attentions, cu_seqlens=cu_seqlens, **options,
        )  # fmt: skip
    last_state = get_layer_cache(layer, past_key_values)
    batch, tokens, _ = hidden_states.shape
    x, indices = hidden_states, None
    if last_state is None and tokens > 1:
        x, indices, cu_seqlens = unpad_hidden_states(x, cu_seqlens, attention_mask, tokens)
    past = None if last_state is None else last_state["recurrent_state"]
    y, state = _mix(layer, x, past, cu_seqlens)
    if use_cache or last_state is not None:
        update_layer_cache(layer, past_key_values, recurrent_state=state, offset=tokens)
    return repad_hidden_states(y, indices, batch, tokens), None, past_key_values


def _mix(
    layer: Any, hidden_states: Tensor, past: State | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, State]:
    z, x, b, c, dt, rate, trap, angles = layer._project_and_split(hidden_states)
    x, z = (y.unflatten(-1, (layer.num_heads, layer.head_dim)) for y in (x, z))
    dt = F.softplus(dt + layer.dt_bias).float()
    own = dt * trap.float().sigmoid()
    next_weight = dt - own
    turn = angles.float().tanh().unsqueeze(2) * math.pi * dt.unsqueeze(-1)
    turn = _add_up(turn, None if past is None else past[0], cu_seqlens)
    q = _turn(_per_head(layer, layer.C_norm, c) + layer.C_bias.squeeze(1), turn)
    k = _turn(_per_head(layer, layer.B_norm, b) + layer.B_bias.squeeze(1), turn)
    initial = None
    if past is not None:
        # what the last token has still to give
        rest = _pick(next_weight, cu_seqlens, last=False)[..., None, None]
        initial = past[1] + rest * past[3].unsqueeze(-1) * past[2].squeeze(1).unsqueeze(-2)
    later = _successors(next_weight, cu_seqlens)
    operator: Any = simple_gla.chunk_simple_gla
    if hidden_states.shape[1] == 1:
        operator = simple_gla.fused_recurrent_simple_gla
    y, state = operator(
        q=q.to(x.dtype),
        k=(k * (own + later).unsqueeze(-1)).to(x.dtype),
        v=x,
        g=layer._compute_a(rate) * dt,
        scale=1.0,
        initial_state=initial,
        output_final_state=True,
        state_v_first=True,
        cu_seqlens=cu_seqlens,
    )
    itself = layer.D - later * (q * k).sum(-1)
    y = y + itself.unsqueeze(-1) * x
    if layer.is_outproj_norm:
        y = layer.norm(y.flatten(2), z.flatten(2))
    else:
        y = (y * F.silu(z.float())).flatten(2)
    last_turn, last_k, last_x = (_pick(value, cu_seqlens, last=True) for value in (turn, k, x))
    return layer.out_proj(y.to(x.dtype)), (last_turn, state, last_k.unsqueeze(1), last_x)


def _per_head(layer: Any, norm: Any, x: Tensor) -> Tensor:
    """Normalised B or C [B, T, H, K] in fp32 from [B, T, groups K]."""
    x = norm(x.unflatten(-1, (layer.n_groups, layer.ssm_state_size))).float()
    return x.repeat_interleave(layer.num_heads // layer.n_groups, 2)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates the first R pairs of neighbouring channels of [B, T, H, K] by [B, T, H, R]."""
    width = 2 * angles.shape[-1]
    left, right = x[..., :width].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([left * cos - right * sin, left * sin + right * cos], -1)
    return torch.cat([turned.flatten(-2), x[..., width:]], -1)


def _add_up(turn: Tensor, start: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Running sums over each sequence, modulo a full turn; in double, as they grow with it."""
    turn = turn.double()
    parts = [turn] if cu_seqlens is None else turn.split(cu_seqlens.diff().tolist(), 1)
    sums = torch.cat([part.cumsum(1) for part in parts], 1)
    sums = sums if start is None else sums + start.unsqueeze(1)
    return sums.remainder(2 * math.pi).float()


def _successors(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """What the next token of the same sequence has, 0 at the last one; [B, T, H]."""
    if cu_seqlens is None:
        return F.pad(x[:, 1:], (0, 0, 0, 1))
    return x.roll(-1, 1).index_fill(1, cu_seqlens[1:].long() - 1, 0)


def _pick(x: Tensor, cu_seqlens: Tensor | None, *, last: bool) -> Tensor:
    """The first or last token of each sequence, [N, ...]."""
    if cu_seqlens is None:
        return x[:, -1 if last else 0]
    return x[0, cu_seqlens[1:] - 1 if last else cu_seqlens[:-1]]
