"""Attention to a fixed number of memory slots, under fla's names: GSA, ABC, and LightNet's gate.

Slots s_t [M] are keys to the values and values to the keys, and decay by g_t:

    K_t = K_{t-1} diag(exp(g_t)) + k_t s_t^T,    p_t = softmax(scale K_t^T q_t)
    V_t = diag(exp(g_t)) V_{t-1} + s_t v_t^T,    o_t = V_t^T p_t

(Zhang et al., arXiv 2409.07146). The first line is linear attention with a decay of the values,
the second one with a decay of the keys. ABC (Peng et al., arXiv 2110.02488) is the case in which s
and g come from `fused_additive_gate`, which divides exp(s) by its running sum; LightNet (Qin et
al., arXiv 2405.21022) does the same to the keys of GLA.

Shape letters: B batch, T tokens, N sequences, H heads, K key width, V value width, M slots.
"""

from typing import Any, NamedTuple, cast

import torch
from fla.layers.abc import ABCAttention
from fla.models.cache_utils import Cache
from fla.ops.gsa import chunk, fused_recurrent, gate
from torch import Tensor, nn

from flame_accel.kernels.modules.padded_rows import (
    LayerOutput,
    forward_rows_without_padding,
    has_padding,
)
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.gla import fused_recurrent_gla
from flame_accel.kernels.recurrence.sequences import count_sequences, split_sequences

StatePair = tuple[Tensor, Tensor]
"""K [N, H, K, M] and V [N, H, M, V]."""
LOG_ZERO = -1e30
"""Stands for log 0, the logarithm of an empty sum, where -inf would make gradients undefined."""


@without_autocast
def fused_recurrent_gsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    initial_state: StatePair | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Outputs [B, T, H, V] in the dtype of `q`; final states [N, G, K, M] and [N, G, M, V].

    The final states are fp32, or None unless `output_final_state`.

    Args:
        q: [B, T, H, K].
        k: [B, T, G, K]; H is a multiple of G.
        v: [B, T, G, V].
        s: [B, T, G, M].
        g: [B, T, G, M] log decays; if None, s and g come from `fused_additive_gate`.
        scale: factor of the scores; 1 / sqrt(K) if None.
        initial_state: like the final states; zeros if None.
        output_final_state: whether to return the final states.
        reverse: run from the last token to the first.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    if g is None:
        s, g, _ = fused_additive_gate(s, None, cu_seqlens, k.dtype, torch.float32)
    hk, hv = (None, None) if initial_state is None else initial_state
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v, s, g = (x.repeat_interleave(groups, 2) for x in (k, v, s, g))
        hk, hv = (None if x is None else x.repeat_interleave(groups, 1) for x in (hk, hv))
    options = (output_final_state, reverse, False, cu_seqlens)
    scores, final_k = fused_recurrent_gla(q, k, s.float(), None, g, scale, hk, *options)
    o, final_v = fused_recurrent_gla(scores.softmax(-1), s, v, g, None, 1.0, hv, *options)
    return o.to(q.dtype), [None if x is None else x[:, ::groups] for x in (final_k, final_v)]


def chunk_abc(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    initial_state: tuple[Tensor, Tensor, Tensor] | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, tuple[Tensor | None, ...] | None]:
    """Outputs [B, T, H, V]; arguments as of `fused_recurrent_gsa`.

    The state holds a third tensor, the logarithm of the running sum [B, 1, H, M]. fla's has only
    two, with which a sequence cannot be continued: the divisor of the next slots is lost.
    The operators are called by fla's names: kernels or PyTorch, whichever is installed.
    """
    *pair, log_sum = (None, None, None) if initial_state is None else initial_state
    additive_gate: Any = gate.fused_additive_gate
    s, g, final_log_sum = additive_gate(s, log_sum, None, k.dtype, torch.float32)
    operator: Any = fused_recurrent.fused_recurrent_gsa if s.shape[1] == 1 else chunk.chunk_gsa
    state = None if initial_state is None else tuple(pair)
    o, final = operator(q, k, v, s, g, initial_state=state, output_final_state=output_final_state)
    return o, (*final, final_log_sum) if output_final_state else None


def call_abc_attention_per_document_or_unpadded_row(
    layer: ABCAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> LayerOutput:
    """`ABCAttention.__call__` on packed documents, which it refuses, or rows one by one.

    fla's layer hides the values of padding, but lets it into the sums of the slots.

    Args:
        layer: fla's `ABCAttention`.
        hidden_states: [B, T, hidden size].
        attention_mask: [B, at least T], 0 for padding; the last T count.
        past_key_values: fla's cache, or None.
        use_cache: for fla's forward pass, as the next one.
        output_attentions: without effect in fla.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        options: for fla's forward pass.
    """

    def call_without_mask(tokens: Tensor, cache: Cache | None) -> LayerOutput:
        return nn.Module.__call__(
            layer,
            hidden_states=tokens,
            past_key_values=cache,
            use_cache=use_cache,
            output_attentions=output_attentions,
            **options,
        )

    if cu_seqlens is not None:
        documents = [x for x in split_sequences(hidden_states, cu_seqlens) if x.shape[1]]
        results = [call_without_mask(document, past_key_values) for document in documents]
        return torch.cat([o for o, _, _ in results], 1), None, results[-1][2]
    if attention_mask is not None and has_padding(attention_mask, hidden_states.shape[1]):
        return forward_rows_without_padding(
            call_without_mask,
            hidden_states,
            attention_mask,
            past_key_values,
            cast(int, layer.layer_idx),
        )
    return call_without_mask(hidden_states, past_key_values)


@without_autocast
def fused_additive_gate(
    x: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    gate_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """With z_t = log sum_{s <= t} exp(x_s): exp(x_t - z_t), log decays z_{t-1} - z_t, last z.

    The first two are shaped like `x` [B, T, H, K], in `output_dtype` and `gate_dtype` (that of `x`
    if None); the first log decay of a sequence without a past is 0. The last z is [N, 1, H, K], in
    fp32.

    Args:
        x: [B, T, H, K].
        initial_state: last z of what came before, [N, 1, H, K]; log 0 if None.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        output_dtype: of the first result.
        gate_dtype: of the second result.
    """
    if initial_state is None:
        shape = (count_sequences(x.shape[0], cu_seqlens), 1, *x.shape[2:])
        initial_state = x.new_full(shape, LOG_ZERO, dtype=torch.float32)
    past_log_sums = initial_state.float().clamp_min(LOG_ZERO)
    sequences = split_sequences(x.float(), cu_seqlens)
    pasts = (past_log_sums,) if cu_seqlens is None else past_log_sums.split(1)
    gated = map(_additive_gate_of_equally_long_rows, sequences, pasts)
    slots, g, last_log_sums = zip(*gated, strict=True)
    slots, g, last_log_sums = torch.cat(slots, 1), torch.cat(g, 1), torch.cat(last_log_sums)
    last_log_sums = last_log_sums.masked_fill(last_log_sums <= LOG_ZERO, -torch.inf)
    return slots.to(output_dtype or x.dtype), g.to(gate_dtype or x.dtype), last_log_sums


class _AdditiveGate(NamedTuple):
    slots: Tensor
    """exp(x_t - z_t)"""
    log_decays: Tensor
    """z_{t-1} - z_t"""
    last_log_sums: Tensor


def _additive_gate_of_equally_long_rows(x: Tensor, past_log_sums: Tensor) -> _AdditiveGate:
    """Of sequences [n, T, H, K] of equal length; `past_log_sums` [n, 1, H, K]."""
    all_z = torch.cat([past_log_sums, x], 1).logcumsumexp(1)
    previous_z, z = all_z[:, :-1], all_z[:, 1:]
    log_decays = (previous_z - z).masked_fill(previous_z <= LOG_ZERO, 0.0)
    return _AdditiveGate((x - z).exp(), log_decays, all_z[:, -1:])
