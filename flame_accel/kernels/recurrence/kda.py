"""KDA and Gated DeltaNet 2 under fla's names; the arithmetic is in `generalized_delta_rule`.

    S_t = D_t S_{t-1} + beta_t k_t (v_t - (D_t S_{t-1})^T k_t)^T,    D_t = diag(exp(g_t))

(Kimi Delta Attention, arXiv 2510.26692): the delta rule with a decay per channel; Gated DeltaNet 2
has gates per channel instead of beta. Decays per head are in `delta_rule`.

Shape letters: B batch, T tokens, H heads of keys, HV heads of values (a multiple of H), K key
width, V value width.
"""

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
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """Kimi Delta Attention, the formula above.

    `v`, `g` [B, T, HV, K] and `beta` [B, T, HV] may have more heads (HV) than `q` and `k` (H).
    With `use_gate_in_kernel`, the log decay is `fused_kda_gate` of `g`. With
    `use_beta_sigmoid_in_kernel`, `beta` are logits; `allow_neg_eigval` doubles their sigmoid.
    """
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
    lower_bound: float | None = None,
    state_v_first: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """S_t = D_t S_{t-1} + k_t (w_t v_t - (D_t S_{t-1})^T (b_t k_t))^T, gates per channel.

    `v`, `g`, `b` [B, T, HV, K] and `w` [B, T, HV, V] may have more heads (HV) than `q` and `k`
    (H). The decay gate is that of `chunk_kda`.
    """
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
