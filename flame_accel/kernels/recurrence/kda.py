"""KDA and Gated DeltaNet 2 under fla's names; the arithmetic is in `generalized_delta_rule`.

    S_t = D_t S_{t-1} + beta_t k_t (v_t - (D_t S_{t-1})^T k_t)^T,    D_t = diag(exp(g_t))

(Kimi Delta Attention, arXiv 2510.26692): the delta rule with a decay per channel; Gated DeltaNet 2
has gates per channel instead of beta. Decays per head are in `delta_rule`. Arguments that choose
among fla's kernels have no effect.

Shape letters: B batch, T tokens, H heads of keys, HV heads of values (a multiple of H), K key
width, V value width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.delta_rule import (
    beta_from_logits,
    check_no_context_parallelism,
    run_delta_rule,
)
from flame_accel.kernels.recurrence.generalized_delta_rule import generalized_delta_rule
from flame_accel.kernels.recurrence.sequences import OutputsAndOptionalStates


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
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: object = None,
    use_graph: bool = False,
    max_num_seqs: int | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    **options: Any,
) -> OutputsAndOptionalStates:
    """Kimi Delta Attention, the formula above.

    `v`, `g` [B, T, HV, K] and `beta` [B, T, HV] may have more heads (HV) than `q` and `k` (H).
    With `use_gate_in_kernel`, the log decay is `fused_kda_gate` of `g`. With
    `use_beta_sigmoid_in_kernel`, `beta` are logits; `allow_neg_eigval` doubles their sigmoid.
    """
    check_no_context_parallelism(cp_context)
    _check_no_intermediate_states(return_intermediate_states)
    if use_gate_in_kernel:
        g = fused_kda_gate(g, A_log, dt_bias, lower_bound)
    if use_beta_sigmoid_in_kernel:
        beta = beta_from_logits(beta, allow_neg_eigval)
    o, state = run_delta_rule(
        q, k, v, beta, g,
        scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
        normalize_qk=use_qk_l2norm_in_kernel, state_v_first=state_v_first,
    )  # fmt: skip
    return o, state if output_final_state else None


def fused_recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    *rest: Any,
    **options: Any,
) -> OutputsAndOptionalStates:
    """As `chunk_kda`, with the arguments in another order.

    transformers passes only arguments whose names are in the signature.
    """
    return chunk_kda(
        q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, *rest,
        A_log=A_log, dt_bias=dt_bias, **options,
    )  # fmt: skip


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
        A_log: [H].
        dt_bias: [H * K].
        lower_bound: limit of the log decays, negative.
        output_dtype: of the log decays.
    """
    num_heads = g.shape[-2]
    logits = g.float() if dt_bias is None else g.float() + dt_bias.float().view(num_heads, -1)
    rate = None if A_log is None else A_log.float().exp().view(num_heads, 1)
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
    cu_seqlens_cpu: Tensor | None = None,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cp_context: object = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    **options: Any,
) -> OutputsAndOptionalStates:
    """S_t = D_t S_{t-1} + k_t (w_t v_t - (D_t S_{t-1})^T (b_t k_t))^T, gates per channel.

    `v`, `g`, `b` [B, T, HV, K] and `w` [B, T, HV, V] may have more heads (HV) than `q` and `k`
    (H). The decay gate is that of `chunk_kda`.
    """
    check_no_context_parallelism(cp_context)
    _check_no_intermediate_states(return_intermediate_states)
    if use_gate_in_kernel:
        g = fused_kda_gate(g, A_log, dt_bias, lower_bound)
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q, output_dtype=torch.float32), l2norm(k, output_dtype=torch.float32)
    repeats = v.shape[2] // k.shape[2]
    if repeats > 1:
        q, k = q.repeat_interleave(repeats, 2), k.repeat_interleave(repeats, 2)
    o, state = generalized_delta_rule(
        q, k, v.float() * w.float(), k.float() * b.float(), None, g,
        scale=k.shape[-1] ** -0.5 if scale is None else scale,
        initial_state=initial_state, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return o.to(v.dtype), state if output_final_state else None


def fused_recurrent_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> OutputsAndOptionalStates:
    """As `chunk_gdn2`, with the arguments in another order."""
    return chunk_gdn2(q, k, v, g, b, w, *rest, A_log=A_log, dt_bias=dt_bias, **options)


def _check_no_intermediate_states(return_intermediate_states: bool) -> None:
    if return_intermediate_states:
        raise UserError(
            "the PyTorch implementation does not keep the states between chunks "
            "(return_intermediate_states)",
            remedy="call it without return_intermediate_states, or on a Triton device",
        )
