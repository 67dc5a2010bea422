"""The delta rule with momentum, in chunks; gradients by autograd.

With queries, keys and prediction keys q_t, k_t, p_t [K], values v_t [V] and, per head, decays a_t
of the memory S and m_t of its momentum M, strengths b_t and rates e_t (Momentum DeltaNet, arXiv
2605.05838):

    M_t = m_t M_{t-1} - e_t k_t (v_t - S_{t-1}^T p_t)^T
    S_t = a_t S_{t-1} - b_t M_t,    o_t = scale S_t^T q_t

Inside a chunk the errors u_t = v_t - S_{t-1}^T p_t solve a triangular system, whose weights are the
product of two matrices of decays <= 1: nothing can overflow.

Shape letters: B batch, T tokens, N sequences, M chunks, H heads, C tokens of a chunk, K key and V
value channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    Chunks,
    cut,
    from_chunks,
    sort_sequences,
    to_chunks,
    unsort_sequences,
)
from flame_accel.kernels.recurrence.scalar_decay import scalar_decays

CHUNK = 64
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
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """Outputs [B, T, H, V] in the dtype of `q`, and final S and M [2, N, H, K, V] in fp32 or None.

    Unlike fla's functions this one takes fp32 inputs and packed batches.

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
        use_qk_l2norm_in_kernel: whether to normalise q, k and p here.
        use_p_times_alpha: whether p_t is multiplied by a_t, which predicts from the decayed S.
        chunk_size: tokens of a chunk.
    """
    dtype, p = q.dtype, k if p is None else p
    ones = torch.ones_like(log_alpha)
    beta, eta = (ones if x is None else x for x in (beta, eta))
    q, k, p = (l2norm(x.float()) if use_qk_l2norm_in_kernel else x.float() for x in (q, k, p))
    p = p * log_alpha.exp().unsqueeze(-1) if use_p_times_alpha else p
    q, k = q * (k.shape[-1] ** -0.5 if scale is None else scale), k * eta.unsqueeze(-1)
    chunks = cut(q.shape[0], q.shape[1], cu_seqlens, chunk_size)
    wide = [to_chunks(x, chunks) for x in (q, k, v, p)]
    narrow = [to_chunks(x.unsqueeze(-1), chunks).squeeze(-1) for x in (log_alpha, log_mu, beta)]
    if initial_state is None:
        num_sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
        shape = (2, num_sequences, q.shape[2], q.shape[3], v.shape[3])
        initial_state = q.new_zeros(shape)
    o, states = _scan(_solve(*wide, *narrow), initial_state.float(), chunks)
    return from_chunks(o, chunks, dtype), states if output_final_state else None


def fused_recurrent_momentum_delta_rule(
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
) -> tuple[Tensor, Tensor | None]:
    """As `chunk_momentum_delta_rule`."""
    return chunk_momentum_delta_rule(
        q, k, v, log_alpha, log_mu, p, beta, eta, scale, initial_state, output_final_state,
        cu_seqlens, use_qk_l2norm_in_kernel, use_p_times_alpha,
    )  # fmt: skip


class _Inside(NamedTuple):
    """What happens inside the chunks; S and M are those before the chunk.

    errors u = own - from_s S + from_m M; outputs scores u + q_s S - q_m M;
    S' = keep_s S - pass_m M + k_s^T u; M' = keep_m M - k_m^T u.
    """

    own: Tensor
    from_s: Tensor
    from_m: Tensor
    scores: Tensor
    q_s: Tensor
    q_m: Tensor
    k_s: Tensor
    k_m: Tensor
    keep_s: Tensor
    pass_m: Tensor
    keep_m: Tensor


def _solve(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, log_alpha: Tensor, log_mu: Tensor, beta: Tensor
) -> _Inside:
    decay_s, start_s, _ = scalar_decays(log_alpha)
    decay_m, start_m, end_m = scalar_decays(log_mu)
    start_s, start_m, end_m = (x.unsqueeze(-1) for x in (start_s, start_m, end_m))
    # S_t holds M_i with weight mix_ti, and M_i holds token j with weight decay_m_ij
    mix = decay_s * beta.unsqueeze(-2)
    weights, of_m = mix @ decay_m, mix @ start_m
    before, m_before = (F.pad(x[..., :-1, :], (0, 0, 1, 0)) for x in (weights, of_m))
    s_before = F.pad(start_s[..., :-1, :], (0, 0, 1, 0), value=1.0)
    right = torch.cat((v, s_before * p, m_before * p), -1)
    solved = torch.linalg.solve_triangular(
        (p @ k.mT) * before, right, upper=False, unitriangular=True
    )
    own, from_s, from_m = solved.split((v.shape[-1], k.shape[-1], k.shape[-1]), -1)
    return _Inside(
        own=own,
        from_s=from_s,
        from_m=from_m,
        scores=(q @ k.mT) * weights,
        q_s=q * start_s,
        q_m=q * of_m,
        k_s=k * weights[..., -1:, :].mT,
        k_m=k * end_m,
        keep_s=start_s[..., -1:, :],
        pass_m=of_m[..., -1:, :],
        keep_m=start_m[..., -1:, :],
    )


def _scan(inside: _Inside, initial: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Outputs [M, H, C, V] and final states [2, N, H, K, V]."""
    s, m = (sort_sequences(x, chunks) for x in initial)
    outputs = []
    for first, count in chunks.rounds:
        here = _Inside(*(x[first : first + count] for x in inside))
        old_s, old_m = s[:count], m[:count]
        u = here.own - here.from_s @ old_s + here.from_m @ old_m
        outputs.append(here.scores @ u + here.q_s @ old_s - here.q_m @ old_m)
        new_s = here.keep_s * old_s - here.pass_m * old_m + here.k_s.mT @ u
        new_m = here.keep_m * old_m - here.k_m.mT @ u
        s, m = torch.cat((new_s, s[count:])), torch.cat((new_m, m[count:]))
    return torch.cat(outputs), torch.stack([unsort_sequences(x, chunks) for x in (s, m)])
