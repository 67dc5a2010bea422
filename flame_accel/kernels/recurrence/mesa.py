"""MesaNet: the least squares fit to all tokens so far, by conjugate gradients in chunks.

With l2-normalised queries and keys q_t, k_t [K], values v_t [V], log decays g_t and strengths b_t
per head, and a ridge lambda [K] (von Oswald et al., MesaNet, arXiv 2506.05233):

    R_t = exp(g_t) R_{t-1} + b_t k_t k_t^T,    S_t = exp(g_t) S_{t-1} + b_t k_t v_t^T
    o_t = S_t^T x_t  where  (R_t + diag(lambda)) x_t = q_t

Products with R_t and S_t are linear attention with decay (`decay`). R_t is symmetric, hence the
gradient of q_t solves the same system. fla adds 1e-5 to the denominators of the conjugate
gradients, which ends them at a residual of 3e-3 and shrinks gradients that are small themselves;
here right hand sides are scaled to length 1 and nothing is added.

Shape letters: B batch, T tokens, N sequences, M chunks, H heads, C tokens of a chunk, K key and V
value channels (K = V in fla).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    Chunks,
    cut,
    from_chunks,
    sort_sequences,
    to_chunks,
)
from flame_accel.kernels.recurrence.decay import decay_attention
from flame_accel.kernels.recurrence.scalar_decay import scalar_decays

CHUNK = 64
"""Tokens of a chunk."""
TINY = 1e-30
"""Keeps denominators from being 0 once a residual is."""


@without_autocast
def chunk_mesa_net(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    h_kk_init: Tensor | None = None,
    h_kv_init: Tensor | None = None,
    output_final_state: bool = False,
    max_CG_iteration: int = 30,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Outputs [B, T, H, V] in the dtype of `v`, final R and S in fp32 or None.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        g: log decays [B, T, H].
        beta: [B, T, H].
        lamb: [H, K].
        h_kk_init: R before the first token [N, H, K, K], symmetric.
        h_kv_init: S before the first token [N, H, K, V].
        output_final_state: whether to return R and S.
        max_CG_iteration: steps of the conjugate gradients.
        use_qk_l2norm_in_kernel: whether to normalise q and k here.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        cu_seqlens_cpu: the same on the host; not needed here.
    """
    qf, kf, lamb = q.float(), k.float(), lamb.float()
    if use_qk_l2norm_in_kernel:
        qf, kf = l2norm(qf), l2norm(kf)
    weighted, decay = kf * beta.float().unsqueeze(-1), g.unsqueeze(-1)
    with torch.no_grad():
        system = _gather(kf, g, beta, lamb, h_kk_init, max_CG_iteration, cu_seqlens)
        x = system.solve(qf)
    seen, h_kk = decay_attention(
        x, weighted, kf, decay, scale=1.0, initial_state=h_kk_init, cu_seqlens=cu_seqlens
    )
    # the value is x; the residual, about 0, carries the gradients of all that the system is made of
    x = _Solution.apply(qf - seen - lamb * x, x, system)
    o, h_kv = decay_attention(
        x, weighted, v, decay, scale=1.0, initial_state=h_kv_init, cu_seqlens=cu_seqlens
    )
    return (o, h_kk, h_kv) if output_final_state else (o, None, None)


@without_autocast
def mesa_net_decoding_one_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lamb: Tensor,
    beta: Tensor,
    prev_h_kk: Tensor,
    prev_h_kv: Tensor,
    max_CG_iteration: int = 30,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token of every sequence: q, k, v [B, H, D], g and beta [B, H], `lamb` [H, K].

    Returns:
        Outputs [B, H, V] in the dtype of `q`, and the new R and S in fp32.
    """
    one = (x.unsqueeze(1) for x in (q, k, v, g, beta))
    o, h_kk, h_kv = chunk_mesa_net(*one, lamb, prev_h_kk, prev_h_kv, True, max_CG_iteration)
    assert h_kk is not None and h_kv is not None
    return o.squeeze(1).to(q.dtype), h_kk, h_kv


class _System(NamedTuple):
    """All matrices R_t + diag(lambda), in the form of chunks [M, H, ...]."""

    k: Tensor
    """[M, H, C, K]"""
    weights: Tensor
    """Decays between the tokens of a chunk times beta [M, H, C, C]."""
    from_start: Tensor
    """Decays from the start of the chunk [M, H, C, 1]."""
    states: Tensor
    """R before each chunk [M, H, K, K]."""
    lamb: Tensor
    """[H, 1, K]"""
    steps: int
    chunks: Chunks

    def multiply(self, x: Tensor) -> Tensor:
        """R_t x_t + lambda x_t for all tokens [M, H, C, K]."""
        inside = ((x @ self.k.mT) * self.weights) @ self.k
        return inside + (x * self.from_start) @ self.states + self.lamb * x

    def solve(self, b: Tensor) -> Tensor:
        """The solutions [B, T, H, K] for right hand sides of that shape, fp32."""
        r = to_chunks(b, self.chunks)
        length = r.norm(dim=-1, keepdim=True)
        r = r / length.clamp_min(TINY)
        x, p, old = torch.zeros_like(r), r, (r * r).sum(-1, keepdim=True)
        for _ in range(self.steps):
            product = self.multiply(p)
            alpha = old / (p * product).sum(-1, keepdim=True).clamp_min(TINY)
            x = x + alpha * p
            r = r - alpha * product
            new = (r * r).sum(-1, keepdim=True)
            p = r + new / old.clamp_min(TINY) * p
            old = new
        return from_chunks(x * length, self.chunks, b.dtype)


class _Solution(torch.autograd.Function):
    """x itself; its gradient goes through the (symmetric) system into the residual."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, system: _System) -> Tensor:
        ctx.system = system
        return x.clone()

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.system.solve(grads[0]), None, None


def _gather(
    k: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    initial: Tensor | None,
    steps: int,
    cu_seqlens: Tensor | None,
) -> _System:
    batch, tokens, num_heads, width = k.shape
    chunks = cut(batch, tokens, cu_seqlens, CHUNK)
    k = to_chunks(k, chunks)
    g, beta = (to_chunks(x.unsqueeze(-1), chunks).squeeze(-1) for x in (g, beta))
    between, from_start, to_end = scalar_decays(g)
    updates = (k * (to_end * beta).unsqueeze(-1)).mT @ k
    if initial is None:
        num_sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
        initial = k.new_zeros(num_sequences, num_heads, width, width)
    states, carry = torch.empty_like(updates), sort_sequences(initial.float(), chunks).clone()
    for first, count in chunks.rounds:
        here = slice(first, first + count)
        states[here] = carry[:count]
        carry[:count] = carry[:count] * from_start[here, :, -1:, None] + updates[here]
    return _System(
        k=k,
        weights=between * beta.unsqueeze(-2),
        from_start=from_start.unsqueeze(-1),
        states=states,
        lamb=lamb.unsqueeze(-2),
        steps=steps,
        chunks=chunks,
    )
