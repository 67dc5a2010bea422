"""The delta rule with momentum, in chunks; gradients by autograd.

With queries, keys and prediction keys q_t, k_t, p_t [K], values v_t [V] and, per head, decays a_t
of the memory S and m_t of its momentum M, strengths b_t and rates e_t (Momentum DeltaNet, arXiv
2605.05838):

    M_t = m_t M_{t-1} - e_t k_t (v_t - S_{t-1}^T p_t)^T
    S_t = a_t S_{t-1} - b_t M_t,    o_t = scale S_t^T q_t

Within a chunk the errors u_t = v_t - S_{t-1}^T p_t solve a triangular system, whose weights are the
product of two matrices of decays <= 1: nothing can overflow.

Shape letters: B batch, T tokens, N sequences, M chunks, H heads, C tokens of a chunk, K key width,
V value width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    ChunkLayout,
    build_chunk_layout,
    from_padded_chunk_batch,
    restore_state_order,
    sort_states_longest_first,
    to_padded_fp32_chunk_batch,
)
from flame_accel.kernels.recurrence.decay_factors import compute_pairwise_and_boundary_decays
from flame_accel.kernels.recurrence.sequences import OutputsAndOptionalStates, count_sequences

CHUNK_SIZE = 64
"""Tokens of a chunk."""


@without_autocast
def chunk_momentum_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    p: Tensor | None = None,
    beta: Tensor | None = None,
    eta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    use_p_times_alpha: bool = True,
) -> OutputsAndOptionalStates:
    """Outputs [B, T, H, V] in the dtype of `q`, and final S and M [2, N, H, K, V] in fp32 or None.

    Unlike fla's function this one also takes fp32 inputs and packed batches.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        log_alpha: log decays of S [B, T, H].
        log_mu: log decays of M [B, T, H].
        p: [B, T, H, K]; the keys if None.
        beta: [B, T, H]; 1 if None.
        eta: [B, T, H]; 1 if None.
        scale: factor of the outputs; 1 / sqrt(K) if None.
        initial_state: like the final states; zeros if None.
        output_final_state: whether to return the states.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        use_qk_l2norm_in_kernel: whether to l2-normalise q, k and p here.
        use_p_times_alpha: whether p_t is multiplied by a_t, which predicts from the decayed S.
    """
    dtype, p = q.dtype, k if p is None else p
    ones = torch.ones_like(log_alpha)
    beta, eta = (ones if x is None else x for x in (beta, eta))
    q, k, p = (l2norm(x.float()) if use_qk_l2norm_in_kernel else x.float() for x in (q, k, p))
    p = p * log_alpha.exp().unsqueeze(-1) if use_p_times_alpha else p
    q, k = q * (k.shape[-1] ** -0.5 if scale is None else scale), k * eta.unsqueeze(-1)
    layout = build_chunk_layout(q.shape[0], q.shape[1], cu_seqlens, CHUNK_SIZE)
    vectors = [to_padded_fp32_chunk_batch(x, layout) for x in (q, k, v, p)]
    scalars = [
        to_padded_fp32_chunk_batch(x.unsqueeze(-1), layout).squeeze(-1)
        for x in (log_alpha, log_mu, beta)
    ]
    if initial_state is None:
        num_sequences = count_sequences(q.shape[0], cu_seqlens)
        initial_state = q.new_zeros(2, num_sequences, *q.shape[2:], v.shape[3])
    intra = _solve_intra_chunk_terms(*vectors, *scalars)
    o, states = _inter_chunk_scan(intra, initial_state.float(), layout)
    return from_padded_chunk_batch(o, layout, dtype), states if output_final_state else None


class _IntraChunkTerms(NamedTuple):
    """Factors of the chunks [M, H, ...]; S and M are the states before a chunk, S' and M' after it.

    u = u_0 - w_s S + w_m M,                      o = scores u + q_s S - q_m M,
    S' = s_decay S - m_to_s M + k_to_s^T u,       M' = m_decay M - k_to_m^T u.
    """

    u_0: Tensor
    """[M, H, C, V]"""
    w_s: Tensor
    """[M, H, C, K], as all others up to `k_to_m` but `scores`."""
    w_m: Tensor
    scores: Tensor
    """[M, H, C, C]"""
    q_s: Tensor
    q_m: Tensor
    k_to_s: Tensor
    k_to_m: Tensor
    s_decay: Tensor
    """[M, H, 1, 1], as the next two."""
    m_to_s: Tensor
    m_decay: Tensor


def _solve_intra_chunk_terms(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, log_alpha: Tensor, log_mu: Tensor, beta: Tensor
) -> _IntraChunkTerms:
    """From q, k, p [M, H, C, K], v [M, H, C, V], and log decays and strengths [M, H, C]."""
    s_decays, m_decays = (
        compute_pairwise_and_boundary_decays(log_alpha),
        compute_pairwise_and_boundary_decays(log_mu),
    )
    s_from_start = s_decays.from_start.unsqueeze(-1)
    m_from_start = m_decays.from_start.unsqueeze(-1)
    # S_t holds M_i with weight mix_ti, and M_i holds token j with weight m_decays_ij
    mix = s_decays.between_tokens * beta.unsqueeze(-2)
    weights, m_weights = mix @ m_decays.between_tokens, mix @ m_from_start
    # errors are those of the previous state
    previous_weights, previous_m_weights = (
        F.pad(x[..., :-1, :], (0, 0, 1, 0)) for x in (weights, m_weights)
    )
    previous_s_decay = F.pad(s_from_start[..., :-1, :], (0, 0, 1, 0), value=1.0)
    right = torch.cat((v, previous_s_decay * p, previous_m_weights * p), -1)
    solved = torch.linalg.solve_triangular(
        (p @ k.mT) * previous_weights, right, upper=False, unitriangular=True
    )
    u_0, w_s, w_m = solved.split((v.shape[-1], k.shape[-1], k.shape[-1]), -1)
    return _IntraChunkTerms(
        u_0=u_0,
        w_s=w_s,
        w_m=w_m,
        scores=(q @ k.mT) * weights,
        q_s=q * s_from_start,
        q_m=q * m_weights,
        k_to_s=k * weights[..., -1:, :].mT,
        k_to_m=k * m_decays.to_end.unsqueeze(-1),
        s_decay=s_from_start[..., -1:, :],
        m_to_s=m_weights[..., -1:, :],
        m_decay=m_from_start[..., -1:, :],
    )


class _OutputsAndFinalState(NamedTuple):
    outputs: Tensor
    """[M, H, C, V]"""
    final_state: Tensor
    """S and M [2, N, H, K, V]."""


def _inter_chunk_scan(
    intra: _IntraChunkTerms, initial_state: Tensor, layout: ChunkLayout
) -> _OutputsAndFinalState:
    s, m = (sort_states_longest_first(x, layout) for x in initial_state)
    outputs = []
    for first, count in layout.rounds:
        here = _IntraChunkTerms(*(x[first : first + count] for x in intra))
        old_s, old_m = s[:count], m[:count]
        u = here.u_0 - here.w_s @ old_s + here.w_m @ old_m
        outputs.append(here.scores @ u + here.q_s @ old_s - here.q_m @ old_m)
        new_s = here.s_decay * old_s - here.m_to_s * old_m + here.k_to_s.mT @ u
        new_m = here.m_decay * old_m - here.k_to_m.mT @ u
        s, m = torch.cat((new_s, s[count:])), torch.cat((new_m, m[count:]))
    final_state = torch.stack([restore_state_order(x, layout) for x in (s, m)])
    return _OutputsAndFinalState(torch.cat(outputs), final_state)
