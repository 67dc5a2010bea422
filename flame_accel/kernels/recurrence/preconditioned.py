"""The delta rule with preconditioned keys, gated per head or per channel.

With queries and keys q_t, k_t [K] of length 1, values v_t [V], strengths b_t and log decays g_t,
and a diagonal A_t of its own strengths b'_t and log decays g'_t (Preconditioned DeltaNet, arXiv
2604.21100):

    A_t = exp(g'_t) A_{t-1} + b'_t k_t^2,    r_t = log(A_t + eps) - center
    p_t = k_t x^(-r_t / (1 + |r_t|)),        o_t = scale S_t^T q_t
    S_t = diag(exp(g_t)) S_{t-1} + b_t p_t (v_t - k_t^T diag(exp(g_t)) S_{t-1})^T

A is the state of linear attention (`linear_attention`) with keys of width 1, S that of a delta rule
(`generalized_delta_rule`) that writes with p and erases with k.

Shape letters: B batch, T tokens, N sequences, H heads of keys, G heads of values (a multiple of H),
K key width, V value width.
"""

import math

import torch
from torch import Tensor

from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.delta_rule import add_decays_of_heads_and_channels
from flame_accel.kernels.recurrence.generalized_delta_rule import generalized_delta_rule
from flame_accel.kernels.recurrence.kda import fused_kda_gate
from flame_accel.kernels.recurrence.linear_attention import linear_attention

DEFAULT_CENTER = -0.2
"""Logarithm of the entry of A at which a key channel is scaled by 1."""

OutputAndStates = tuple[Tensor, Tensor | None, Tensor | None]
"""Outputs [B, T, G, V], and final S [N, G, K, V] and A [N, H, K] in fp32, or None."""


def chunk_precond_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_atk: Tensor,
    g: Tensor | None,
    beta_atk: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    cu_seqlens: Tensor | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | None = None,
    gk: Tensor | None = None,
) -> OutputAndStates:
    """Decay per head `g` [B, T, G], per channel `gk` [B, T, G, K], or both.

    The others as of `_preconditioned_delta_rule`; `beta` is 1 if None.
    """
    return _preconditioned_delta_rule(
        q, k, v, add_decays_of_heads_and_channels(g, gk),
        torch.ones_like(v[..., 0]) if beta is None else beta,
        g_atk, beta_atk, scale, initial_state, initial_A_state, output_final_state,
        use_qk_l2norm_in_kernel, cu_seqlens, transpose_state_layout, x, eps, log_atk_scale,
    )  # fmt: skip


def chunk_precond_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_atk: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    cu_seqlens: Tensor | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> OutputAndStates:
    """Decay per channel `g` [B, T, G, K], or input of its gate; see `_preconditioned_delta_rule`.

    The gate is `fused_kda_gate`.
    """
    g = fused_kda_gate(g, A_log, dt_bias, lower_bound) if use_gate_in_kernel else g
    return _preconditioned_delta_rule(
        q, k, v, g, beta, g_atk, beta_atk, scale, initial_state, initial_A_state,
        output_final_state, use_qk_l2norm_in_kernel, cu_seqlens, transpose_state_layout, x, eps,
        log_atk_scale,
    )  # fmt: skip


@without_autocast
def _preconditioned_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    g_atk: Tensor,
    beta_atk: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    initial_A_state: Tensor | None,
    output_final_state: bool,
    use_qk_l2norm_in_kernel: bool,
    cu_seqlens: Tensor | None,
    transpose_state_layout: bool,
    x: float,
    eps: float,
    log_atk_scale: Tensor | None,
) -> OutputAndStates:
    """Outputs [B, T, G, V] in the dtype of `v`, final S [N, G, K, V] and A [N, H, K] or None.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, G, V].
        g: log decays of S, [B, T, G, 1] per head, [B, T, G, K] per channel, or None.
        beta: strengths of S [B, T, G].
        g_atk: log decays of A [B, T, H].
        beta_atk: strengths of A [B, T, H].
        scale: factor of the outputs; 1 / sqrt(K) if None.
        initial_state: like the final S; zeros if None.
        initial_A_state: like the final A; zeros if None.
        output_final_state: whether to return S and A.
        use_qk_l2norm_in_kernel: whether to l2-normalise q and k here.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        transpose_state_layout: whether S is [N, G, V, K].
        x: keys are scaled by factors from 1 / x to x.
        eps: keeps the logarithm finite.
        log_atk_scale: `center`, see the module [H], or `DEFAULT_CENTER` if None.
    """
    q, k, beta = q.float(), k.float(), beta.float().unsqueeze(-1)
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q), l2norm(k)
    a_strength = beta_atk.float().unsqueeze(-1)
    a, a_state = linear_attention(
        torch.ones_like(a_strength),
        a_strength,
        k.square(),
        g_atk.unsqueeze(-1),
        scale=1.0,
        initial_state=None if initial_A_state is None else initial_A_state.unsqueeze(-2),
        cu_seqlens=cu_seqlens,
    )
    log_center = DEFAULT_CENTER if log_atk_scale is None else log_atk_scale.float().unsqueeze(-1)
    r = (a + eps).log() - log_center
    p = k * (-math.log(x) * r / (1 + r.abs())).exp()
    shared = v.shape[2] // k.shape[2]
    if shared > 1:
        q, k, p = (y.repeat_interleave(shared, 2) for y in (q, k, p))
    o, state = generalized_delta_rule(
        q, p, v.float() * beta, k * beta, None, g,
        scale=k.shape[-1] ** -0.5 if scale is None else scale, initial_state=initial_state,
        state_v_first=transpose_state_layout, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    o = o.to(v.dtype)
    return (o, state, a_state.squeeze(-2)) if output_final_state else (o, None, None)
