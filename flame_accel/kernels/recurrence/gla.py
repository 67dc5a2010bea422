"""Linear attention with decay, under fla's names and signatures; arithmetic in `linear_attention`.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t

(GLA, arXiv 2312.06635; RetNet, arXiv 2307.08621; Mamba2, arXiv 2405.21060). GLA, HGRN2, LightNet
and Rodimus call the functions with decays per channel; simple GLA, RetNet, lightning attention,
Mamba2 and linear attention those with decays per head.

Outputs are [B, T, H, V], final states [N, H, K, V] in fp32.

Shape letters: B batch, T tokens, N sequences, H heads, K key width, V value width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.recurrence.linear_attention import linear_attention
from flame_accel.kernels.recurrence.sequences import (
    OutputsAndFinalStates,
    OutputsAndOptionalStates,
    run_operator_from_last_token,
    split_sequences,
)
from flame_accel.kernels.recurrence.value_decay import linear_attention_with_value_decay


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """Decay per key channel, `g` [B, T, H, K]; see `linear_attention.linear_attention`."""
    return _linear_attention_with_fla_defaults(
        q, k, v, g, scale, initial_state, output_final_state, state_v_first, cu_seqlens
    )


def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """As `chunk_gla`; `reverse` runs from the last token to the first.

    Log decays are per key channel, `gk` [B, T, H, K], or per value channel, `gv` [B, T, H, V].
    """
    if gk is not None and gv is not None:
        raise UserError(
            "fused_recurrent_gla takes decays of the keys (gk) or of the values (gv), not both",
            remedy="run this model on a machine with a Triton device",
        )
    g, attention = (gk, linear_attention) if gv is None else (gv, linear_attention_with_value_decay)
    return _linear_attention_with_fla_defaults(
        q, k, v, g, scale, initial_state, output_final_state, state_v_first, cu_seqlens, reverse,
        attention,
    )  # fmt: skip


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """Decay per head: `g` [B, T, H], or `g_gamma` [H] for all tokens, or none."""
    return _linear_attention_with_fla_defaults(
        q, k, v, _per_token_log_decay_from_g_else_gamma(q, g, g_gamma), scale, initial_state,
        output_final_state, state_v_first, cu_seqlens,
    )  # fmt: skip


def fused_chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """As `chunk_simple_gla`."""
    g = _per_token_log_decay_from_g_else_gamma(q, g, g_gamma)
    return _linear_attention_with_fla_defaults(
        q, k, v, g, scale, initial_state, output_final_state, False, cu_seqlens
    )


def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """As `chunk_simple_gla`; `reverse` runs from the last token to the first."""
    return _linear_attention_with_fla_defaults(
        q, k, v, _per_token_log_decay_from_g_else_gamma(q, g, g_gamma), scale, initial_state,
        output_final_state, state_v_first, cu_seqlens, reverse,
    )  # fmt: skip


def parallel_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """As `chunk_simple_gla` without states; the second value are the scores [B, H, T, T] or None.

    The scores, scale exp(g_{j+1} + ... + g_i) q_i . k_j, have no gradient, as in fla.
    """
    g = _per_token_log_decay_from_g_else_gamma(q, g, None)
    o, _ = _linear_attention_with_fla_defaults(q, k, v, g, scale, None, False, False, cu_seqlens)
    if not output_attentions:
        return o, None
    if cu_seqlens is not None:
        raise UserError(
            "parallel_simple_gla has no attention scores of packed documents (output_attentions)",
            remedy="call it without output_attentions, or for one document after the other",
        )
    return o, _attention_scores(q, k, g, k.shape[-1] ** -0.5 if scale is None else scale)


@torch.no_grad()
def _attention_scores(q: Tensor, k: Tensor, g: Tensor | None, scale: float) -> Tensor:
    """[B, H, T, T] in the dtype of `q`, from `q` and `k` [B, T, H, K] and `g` [B, T, H, 1]."""
    scores = (q.float() * scale).transpose(1, 2) @ k.float().permute(0, 2, 3, 1)
    if g is not None:
        # in double: differences of large sums are what counts
        decays = g.double().squeeze(-1).mT.cumsum(-1)
        scores = scores * (decays.unsqueeze(-1) - decays.unsqueeze(-2)).tril().exp().float()
    return scores.tril().to(q.dtype)


def _per_token_log_decay_from_g_else_gamma(
    q: Tensor, g: Tensor | None, g_gamma: Tensor | None
) -> Tensor | None:
    """Log decays [B, T, H, 1] from `g` [B, T, H], or `g_gamma` [H], or None if both are."""
    if g is not None:
        return g.unsqueeze(-1)
    return None if g_gamma is None else g_gamma.view(1, 1, -1, 1).expand(*q.shape[:2], -1, 1)


def _linear_attention_with_fla_defaults(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    state_v_first: bool,
    cu_seqlens: Tensor | None,
    reverse: bool = False,
    attention: Callable[..., OutputsAndFinalStates] = linear_attention,
) -> OutputsAndOptionalStates:
    """`attention` with fla's defaults for scale, direction and returned state."""
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    attention = partial(attention, scale=scale, state_v_first=state_v_first)
    if reverse:
        o, state = run_operator_from_last_token(attention, (q, k, v, g), initial_state, cu_seqlens)
    else:
        o, state = attention(q, k, v, g, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return o, state if output_final_state else None


def chunk_global_cumsum(
    s: Tensor,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    output_dtype: torch.dtype | None = torch.float,
) -> Tensor:
    """Running sum of `s` [B, T, ...] in each sequence, from its end if `reverse`, times `scale`."""
    parts = split_sequences(s.float(), cu_seqlens)
    sums = [part.flip(1).cumsum(1).flip(1) if reverse else part.cumsum(1) for part in parts]
    total = torch.cat(sums, 1)
    return (total if scale is None else total * scale).to(output_dtype or s.dtype)
