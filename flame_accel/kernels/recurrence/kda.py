"""KDA and Gated DeltaNet 2 under fla's names; the arithmetic is in `generalized_delta_rule`.

    S_t = D_t S_{t-1} + beta_t k_t (v_t - (D_t S_{t-1})^T k_t)^T,    D_t = diag(exp(g_t))

(Kimi Delta Attention, arXiv 2510.26692): the delta rule with a decay per channel; Gated DeltaNet 2
has gates per channel instead of beta. Decays per head are in `delta_rule`.

Shape letters: B batch, T tokens, H heads of keys, HV heads of values (a multiple of H), K key
width, V value width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.delta_rule import (
    beta_from_logits,
    run_delta_rule,
)
from flame_accel.kernels.recurrence.generalized_delta_rule import generalized_delta_rule
from flame_accel.kernels.recurrence.sequences import (
    OutputsAndFinalStates,
    split_sequences,
    zeros_per_sequence,
)

STATE_INTERVAL = 64
"""Tokens between the states that `return_intermediate_states` asks for, a chunk of fla's."""


@without_autocast
def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor]:
    """Kimi Delta Attention, the formula above.

    `v`, `g` [B, T, HV, K] and `beta` [B, T, HV] may have more heads (HV) than `q` and `k` (H).
    With `use_gate_in_kernel`, the log decay is `fused_kda_gate` of `g`. With
    `use_beta_sigmoid_in_kernel`, `beta` are logits; `allow_neg_eigval` doubles their sigmoid. With
    `return_intermediate_states`, the third result are the states before every `STATE_INTERVAL`
    tokens of a sequence, in the dtype of `k` [B, intervals, HV, K, V]; then nothing has a gradient.
    """
    if use_gate_in_kernel:
        g = fused_kda_gate(g, A_log, dt_bias, lower_bound)
    if use_beta_sigmoid_in_kernel:
        beta = beta_from_logits(beta, allow_neg_eigval)
    operator = partial(
        run_delta_rule,
        scale=scale, normalize_qk=use_qk_l2norm_in_kernel, state_v_first=state_v_first,
    )  # fmt: skip
    if return_intermediate_states:
        if initial_state is None:
            initial_state = _zero_states(k, v, state_v_first, cu_seqlens)
        o, state, states = _run_in_intervals_without_grad(
            operator, (q, k, v, beta, g), initial_state, cu_seqlens
        )
        return o, state if output_final_state else None, states.to(k.dtype)
    o, state = operator(q, k, v, beta, g, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return o, state if output_final_state else None


def fused_kda_gate(
    g: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    lower_bound: float | None = None,
    output_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Log decays -exp(A_log) softplus(g + dt_bias), shaped like `g`.

    With `lower_bound` they are lower_bound sigmoid(exp(A_log) (g + dt_bias)), and `A_log` may be
    None.

    Args:
        g: [..., H, K].
        A_log: H values, in any shape.
        dt_bias: [H * K].
        lower_bound: limit of the log decays, negative.
        output_dtype: of the log decays.
    """
    num_heads = g.shape[-2]
    logits = g.float() if dt_bias is None else g.float() + dt_bias.float().view(num_heads, -1)
    rate = None if A_log is None else A_log.float().exp().reshape(num_heads, 1)
    if lower_bound is not None:
        logits = logits if rate is None else rate * logits
        return (lower_bound * logits.sigmoid()).to(output_dtype)
    if rate is None:
        raise UserError("a KDA gate needs A_log or lower_bound", remedy="pass one of them")
    return (-rate * F.softplus(logits)).to(output_dtype)


@without_autocast
def chunk_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    lower_bound: float | None = None,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor]:
    """S_t = D_t S_{t-1} + k_t (w_t v_t - (D_t S_{t-1})^T (b_t k_t))^T, gates per channel.

    `v`, `g`, `b` [B, T, HV, K] and `w` [B, T, HV, V] may have more heads (HV) than `q` and `k`
    (H). The decay gate and `return_intermediate_states` are those of `chunk_kda`.
    """
    dtype, state_dtype = v.dtype, k.dtype
    if use_gate_in_kernel:
        g = fused_kda_gate(g, A_log, dt_bias, lower_bound)
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q, output_dtype=torch.float32), l2norm(k, output_dtype=torch.float32)
    repeats = v.shape[2] // k.shape[2]
    if repeats > 1:
        q, k = q.repeat_interleave(repeats, 2), k.repeat_interleave(repeats, 2)
    inputs = (q, k, v.float() * w.float(), k.float() * b.float(), g)
    operator = partial(
        _run_delta_rule_with_gates,
        scale=k.shape[-1] ** -0.5 if scale is None else scale, state_v_first=state_v_first,
    )  # fmt: skip
    if return_intermediate_states:
        if initial_state is None:
            initial_state = _zero_states(k, v, state_v_first, cu_seqlens)
        o, state, states = _run_in_intervals_without_grad(
            operator, inputs, initial_state, cu_seqlens
        )
        return o.to(dtype), state if output_final_state else None, states.to(state_dtype)
    o, state = operator(*inputs, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return o.to(dtype), state if output_final_state else None


def _run_delta_rule_with_gates(
    q: Tensor, k: Tensor, v: Tensor, erase_keys: Tensor, g: Tensor, **options: Any
) -> OutputsAndFinalStates:
    return generalized_delta_rule(q, k, v, erase_keys, None, g, **options)


def _zero_states(k: Tensor, v: Tensor, state_v_first: bool, cu_seqlens: Tensor | None) -> Tensor:
    widths = (v.shape[-1], k.shape[-1]) if state_v_first else (k.shape[-1], v.shape[-1])
    return zeros_per_sequence(v, cu_seqlens, v.shape[2], *widths)


class _OutputsFinalAndIntervalStates(NamedTuple):
    outputs: Tensor
    """[B, T, HV, V]"""
    final: Tensor
    """[N, HV, K, V]"""
    before_intervals: Tensor
    """[B, intervals, HV, K, V]"""


@torch.no_grad()
def _run_in_intervals_without_grad(
    operator: Callable[..., OutputsAndFinalStates],
    inputs: tuple[Tensor, ...],
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
) -> _OutputsFinalAndIntervalStates:
    """An operator of inputs [B, T, ...], and the states before every `STATE_INTERVAL` tokens."""
    outputs, befores, finals = [], [], []
    sequences = zip(*(split_sequences(x, cu_seqlens) for x in inputs), strict=True)
    for number, sequence in enumerate(sequences):
        start = slice(None) if cu_seqlens is None else slice(number, number + 1)
        state = initial_state[start].float()
        for part in zip(*(x.split(STATE_INTERVAL, 1) for x in sequence), strict=True):
            if not part[0].shape[1]:
                break
            befores.append(state)
            o, state = operator(*part, initial_state=state, cu_seqlens=None)
            outputs.append(o)
        finals.append(state)
    states = torch.stack(befores, 1) if cu_seqlens is None else torch.cat(befores).unsqueeze(0)
    return _OutputsFinalAndIntervalStates(torch.cat(outputs, 1), torch.cat(finals), states)
