"""The decay family under fla's names and signatures; the arithmetic is in `decay`.

GLA, HGRN2, LightNet and Rodimus call the functions with decays per channel; simple GLA, RetNet,
lightning attention, Mamba2 and linear attention those with decays per head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.recurrence.decay import decay_attention
from flame_accel.kernels.recurrence.value_decay import value_decay_attention

States = tuple[Tensor, Tensor | None]


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
    cu_seqlens_cpu: Tensor | None = None,
) -> States:
    """Decay per key channel, `g` [B, T, H, K]; see `decay.decay_attention`."""
    return _attend(q, k, v, g, scale, initial_state, output_final_state, state_v_first, cu_seqlens)


def fused_chunk_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **options: Any) -> States:
    """As `chunk_gla`; fla 0.6 has only the name left, which its layers know as a mode."""
    return chunk_gla(q, k, v, g, **options)


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
) -> States:
    """As `chunk_gla`; `reverse` runs from the last token to the first.

    Log decays are per key channel, `gk` [B, T, H, K], or per value channel, `gv` [B, T, H, V].
    """
    if gk is not None and gv is not None:
        raise UserError(
            "fused_recurrent_gla takes decays of the keys (gk) or of the values (gv), not both",
            remedy="run this model on a machine with a Triton device",
        )
    g, core = (gk, decay_attention) if gv is None else (gv, value_decay_attention)
    return _attend(
        q, k, v, g, scale, initial_state, output_final_state, state_v_first, cu_seqlens, reverse,
        core,
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
    cu_seqlens_cpu: Tensor | None = None,
    chunk_size: int | None = None,
) -> States:
    """Decay per head: `g` [B, T, H], or `g_gamma` [H] for all tokens, or none."""
    return _attend(
        q, k, v, _head_decay(q, g, g_gamma), scale, initial_state, output_final_state,
        state_v_first, cu_seqlens,
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
) -> States:
    """As `chunk_simple_gla`."""
    g = _head_decay(q, g, g_gamma)
    return _attend(q, k, v, g, scale, initial_state, output_final_state, False, cu_seqlens)


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
) -> States:
    """As `chunk_simple_gla`; `reverse` runs from the last token to the first."""
    return _attend(
        q, k, v, _head_decay(q, g, g_gamma), scale, initial_state, output_final_state,
        state_v_first, cu_seqlens, reverse,
    )  # fmt: skip


def parallel_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> States:
    """As `chunk_simple_gla` without states; the second value, attention scores, is None."""
    if output_attentions:
        raise UserError(
            "parallel_simple_gla has no attention scores in PyTorch",
            remedy="call it without output_attentions",
        )
    return _attend(q, k, v, _head_decay(q, g, None), scale, None, False, False, cu_seqlens)


def _head_decay(q: Tensor, g: Tensor | None, g_gamma: Tensor | None) -> Tensor | None:
    if g is not None:
        return g.unsqueeze(-1)
    return None if g_gamma is None else g_gamma.view(1, 1, -1, 1).expand(*q.shape[:2], -1, 1)


def _attend(
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
    core: Callable[..., tuple[Tensor, Tensor]] = decay_attention,
) -> States:
    if reverse:
        q, k, v = q.flip(1), k.flip(1), v.flip(1)
        g = None if g is None else g.flip(1)
        if cu_seqlens is not None:
            cu_seqlens = cu_seqlens[-1] - cu_seqlens.flip(0)
            initial_state = None if initial_state is None else initial_state.flip(0)
    o, state = core(
        q,
        k,
        v,
        g,
        scale=k.shape[-1] ** -0.5 if scale is None else scale,
        initial_state=initial_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
    )
    if reverse:
        o = o.flip(1)
        state = state if cu_seqlens is None else state.flip(0)
    return o, state if output_final_state else None


def chunk_global_cumsum(
    s: Tensor,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    output_dtype: torch.dtype | None = torch.float,
) -> Tensor:
    """Running sum of `s` [B, T, ...] in each sequence, from the end if `reverse`, times `scale`."""
    x = s.float()
    parts = [x] if cu_seqlens is None else x.split(cu_seqlens.diff().tolist(), 1)
    sums = [part.flip(1).cumsum(1).flip(1) if reverse else part.cumsum(1) for part in parts]
    total = sums[0] if cu_seqlens is None else torch.cat(sums, 1)
    return (total if scale is None else total * scale).to(output_dtype or s.dtype)
