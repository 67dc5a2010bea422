"""Cyclic flow attention: softmax over a memory whose slots are times relative to a learned clock.

With queries and keys q_t, k_t [K] (RMS-normalised), values v_t [V], log decays g_t, strengths b_t
and clock steps d_t per head, P = M - 1 slots (CyFA, arXiv 2609.36259):

    l_t = d_1 + ... + d_t,    w_t = b_t * real(conj(z_t) * size),    z_t = exp(2 pi i l_t m / P)
    X_t = exp(g_t) X_{t-1} + k_t w_t^T,    Y_t = exp(g_t) Y_{t-1} + w_t v_t^T
    s_t = softmax(R (z_t * (scale X_t^T q_t))),    o_t = Y_t^T (conj(z_t) * (R^T s_t))

where m = 0 ... M/2 - 1, `real` lays complex numbers out as pairs, and R is the learned readout in
that basis. X and Y are linear attentions with decay (`decay`).

Shape letters: B batch, T tokens, N sequences, H heads, K key and V value channels, M = P + 1 slots.
"""

import math

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.decay import decay_attention

State = tuple[Tensor, Tensor, Tensor]
"""X [N, H, K, M], Y [N, H, M, V] and the clock [N, H], all fp32."""


@without_autocast
def chunk_cyfa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    delta: Tensor,
    beta: Tensor,
    readout: Tensor,
    q_norm_weight: Tensor,
    k_norm_weight: Tensor,
    q_norm_eps: float,
    k_norm_eps: float,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    checkpoint_level: int = 0,
) -> tuple[Tensor, State | None]:
    """Outputs [B, T, H, V] in the dtype of `q`, and the final state or None.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        g: log decays [B, T, H].
        delta: clock steps [B, T, H].
        beta: strengths [B, T, H].
        readout: [H, P, P].
        q_norm_weight: [K].
        k_norm_weight: [K].
        q_norm_eps: of the RMS norm of q.
        k_norm_eps: of the RMS norm of k.
        scale: factor of the scores; 1 / sqrt(K) if None.
        initial_state: zeros if None.
        output_final_state: whether to return the state.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        cu_seqlens_cpu: the same on the host; not needed here.
        checkpoint_level: of fla's kernels.
    """
    x0, y0, clock0 = (None, None, None) if initial_state is None else initial_state
    decay, period = g.unsqueeze(-1), readout.shape[-1]
    query = _rms_norm(q, q_norm_weight, q_norm_eps)
    key = _rms_norm(k, k_norm_weight, k_norm_eps)
    clock, clock_end = _run_clock(delta, clock0, cu_seqlens)
    turn, size = _turn(clock, period), _atom_size(period, q.device)
    write = beta.float().unsqueeze(-1) * _as_pairs(size * turn.conj())
    scores, x = decay_attention(
        query,
        key,
        write,
        decay,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        initial_state=x0,
        cu_seqlens=cu_seqlens,
    )
    table = readout.float() @ _readout_basis(period, q.device)
    rotated = _as_pairs(turn * _as_complex(scores))
    share = torch.einsum("bthm,hrm->bthr", rotated, table).softmax(-1)
    weights = _as_complex(torch.einsum("bthr,hrm->bthm", share, table))
    o, y = decay_attention(
        _as_pairs(turn.conj() * weights),
        write,
        v.float(),
        decay,
        scale=1.0,
        initial_state=y0,
        cu_seqlens=cu_seqlens,
    )
    return o.to(q.dtype), (x, y, clock_end) if output_final_state else None


def fused_recurrent_cyfa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    delta: Tensor,
    beta: Tensor,
    readout: Tensor,
    q_norm_weight: Tensor,
    k_norm_weight: Tensor,
    q_norm_eps: float,
    k_norm_eps: float,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State | None]:
    """As `chunk_cyfa`."""
    return chunk_cyfa(
        q, k, v, g, delta, beta, readout, q_norm_weight, k_norm_weight, q_norm_eps, k_norm_eps,
        scale, initial_state, output_final_state, cu_seqlens,
    )  # fmt: skip


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    total = x.float()
    normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * weight.float()
    return normed.to(x.dtype)


def _run_clock(
    delta: Tensor, initial: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The clock at every token [B, T, H] in double, and after each sequence [N, H] in fp32."""
    steps = delta.double()
    parts = [steps] if cu_seqlens is None else steps.split(cu_seqlens.diff().tolist(), 1)
    times = [part.cumsum(1) for part in parts]
    if initial is not None:
        begin = [initial] if cu_seqlens is None else initial.split(1)
        times = [time + x.double().unsqueeze(1) for time, x in zip(times, begin, strict=True)]
    return torch.cat(times, 1), torch.cat([time[:, -1] for time in times]).float()


def _turn(clock: Tensor, period: int) -> Tensor:
    """exp(2 pi i clock m / period), complex [B, T, H, M / 2]."""
    pair = torch.arange((period + 1) // 2, device=clock.device)
    # whole turns are taken off in integers, which keeps the phase exact however late it is
    whole = clock.detach().floor()
    turned = whole.long().unsqueeze(-1) * pair % period
    turned = turned + (clock - whole).float().unsqueeze(-1) * pair
    phase = turned * (2 * math.pi / period)
    return torch.polar(torch.ones_like(phase), phase)


def _atom_size(period: int, device: torch.device) -> Tensor:
    """Lengths [M / 2] that make the rows of `_readout_basis` orthonormal."""
    size = torch.full(((period + 1) // 2,), math.sqrt(2 / period), device=device)
    size[0] = math.sqrt(1 / period)
    return size


def _readout_basis(period: int, device: torch.device) -> Tensor:
    """The Fourier basis of the slots, real [P, M]."""
    slots = torch.arange(period, device=device, dtype=torch.double)
    return _as_pairs(_atom_size(period, device) * _turn(slots, period))


def _as_pairs(z: Tensor) -> Tensor:
    return torch.view_as_real(z.resolve_conj()).flatten(-2)


def _as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
