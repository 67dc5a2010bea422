"""Cyclic flow attention: softmax over memory slots that rotate with a learned clock.

With queries and keys q_t, k_t [K] (RMS-normalised), values v_t [V], log decays g_t, strengths b_t
and clock steps d_t per head, P = M - 1 slots (CyFA, arXiv 2609.36259):

    l_t = d_1 + ... + d_t,    w_t = b_t * real(conj(z_t) * size),    z_t = exp(2 pi i l_t m / P)
    X_t = exp(g_t) X_{t-1} + k_t w_t^T,    Y_t = exp(g_t) Y_{t-1} + w_t v_t^T
    s_t = softmax(R (z_t * (scale X_t^T q_t))),    o_t = Y_t^T (conj(z_t) * (R^T s_t))

where m = 0 ... M/2 - 1, `size` makes the Fourier basis of the slots orthonormal, `real` lays
complex numbers out as pairs, and R is the learned readout in that basis. X and Y are states of
linear attention with decay (`linear_attention`).

Shape letters: B batch, T tokens, N sequences, H heads, K key width, V value width, P slots (the
period of the clock), M = P + 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.linear_attention import linear_attention
from flame_accel.kernels.recurrence.sequences import cumsum_per_sequence, last_tokens

CyfaState = tuple[Tensor, Tensor, Tensor]
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
    initial_state: CyfaState | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, CyfaState | None]:
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
        q_norm_eps: epsilon of the RMS norm of q.
        k_norm_eps: epsilon of the RMS norm of k.
        scale: factor of the scores; 1 / sqrt(K) if None.
        initial_state: zeros if None.
        output_final_state: whether to return the state.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    x0, y0, clock0 = (None, None, None) if initial_state is None else initial_state
    g, period = g.unsqueeze(-1), readout.shape[-1]
    q_normed = _rms_norm(q, q_norm_weight, q_norm_eps)
    k_normed = _rms_norm(k, k_norm_weight, k_norm_eps)
    clock = cumsum_per_sequence(delta.double(), cu_seqlens, clock0)
    z, size = _complex_clock_harmonics(clock, period), _orthonormal_fourier_scales(period, q.device)
    w = beta.float().unsqueeze(-1) * _complex_to_interleaved_real(size * z.conj())
    scores, x = linear_attention(
        q_normed,
        k_normed,
        w,
        g,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        initial_state=x0,
        cu_seqlens=cu_seqlens,
    )
    fourier_readout = readout.float() @ _real_fourier_basis(period, q.device)
    rotated = _complex_to_interleaved_real(z * _interleaved_real_to_complex(scores))
    s = torch.einsum("bthm,hrm->bthr", rotated, fourier_readout).softmax(-1)
    weights = _interleaved_real_to_complex(torch.einsum("bthr,hrm->bthm", s, fourier_readout))
    o, y = linear_attention(
        _complex_to_interleaved_real(z.conj() * weights),
        w,
        v.float(),
        g,
        scale=1.0,
        initial_state=y0,
        cu_seqlens=cu_seqlens,
    )
    state = (x, y, last_tokens(clock, cu_seqlens, clock0).float()) if output_final_state else None
    return o.to(q.dtype), state


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


def _complex_clock_harmonics(clock: Tensor, period: int) -> Tensor:
    """exp(2 pi i clock m / period), complex [..., M / 2], from the clock [...]."""
    m = torch.arange((period + 1) // 2, device=clock.device)
    # whole steps are reduced modulo the period in integers: the phase stays exact at any time
    whole = clock.detach().floor()
    slots = whole.long().unsqueeze(-1) * m % period
    slots = slots + (clock - whole).float().unsqueeze(-1) * m
    phase = slots * (2 * math.pi / period)
    return torch.polar(torch.ones_like(phase), phase)


def _orthonormal_fourier_scales(period: int, device: torch.device) -> Tensor:
    """Factors [M / 2] that make the columns of `_real_fourier_basis` orthonormal."""
    size = torch.full(((period + 1) // 2,), math.sqrt(2 / period), device=device)
    size[0] = math.sqrt(1 / period)
    return size


def _real_fourier_basis(period: int, device: torch.device) -> Tensor:
    """The Fourier basis of the slots, real [P, M]."""
    slots = torch.arange(period, device=device, dtype=torch.double)
    return _complex_to_interleaved_real(
        _orthonormal_fourier_scales(period, device) * _complex_clock_harmonics(slots, period)
    )


def _complex_to_interleaved_real(z: Tensor) -> Tensor:
    """Complex [..., M / 2] -> real [..., M]: real and imaginary parts in turn."""
    return torch.view_as_real(z.resolve_conj()).flatten(-2)


def _interleaved_real_to_complex(x: Tensor) -> Tensor:
    """Inverse of `_complex_to_interleaved_real`."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
