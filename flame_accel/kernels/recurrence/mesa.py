"""MesaNet: a least-squares fit to all tokens so far, by conjugate gradients in chunks.

With l2-normalised queries and keys q_t, k_t [K], values v_t [V], log decays g_t and strengths b_t
per head, and a ridge lambda [K] (von Oswald et al., MesaNet, arXiv 2506.05233):

    R_t = exp(g_t) R_{t-1} + b_t k_t k_t^T,    S_t = exp(g_t) S_{t-1} + b_t k_t v_t^T
    o_t = S_t^T x_t  where  (R_t + diag(lambda)) x_t = q_t

Products with R_t and S_t are linear attention with decay (`linear_attention`). R_t is symmetric,
hence the gradient of q_t solves the same system. fla adds 1e-5 to the denominators of the conjugate
gradients, which stops them at a residual of 3e-3 and shrinks gradients that are small themselves;
here right-hand sides are scaled to length 1 and nothing is added.

Shape letters: B batch, T tokens, N sequences, M chunks, H heads, C tokens of a chunk, K key width,
V value width (K = V in fla).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    ChunkLayout,
    build_chunk_layout,
    from_padded_chunk_batch,
    to_padded_fp32_chunk_batch,
)
from flame_accel.kernels.recurrence.decay_factors import compute_pairwise_and_boundary_decays
from flame_accel.kernels.recurrence.linear_attention import inter_chunk_scan, linear_attention
from flame_accel.kernels.recurrence.sequences import zeros_per_sequence

CHUNK_SIZE = 64
"""Tokens of a chunk."""
MIN_DENOMINATOR = 1e-30
"""Keeps denominators from being 0 once a residual is 0."""


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
    *,
    starts_at_diagonal: bool = False,
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
        max_CG_iteration: number of conjugate gradient steps.
        use_qk_l2norm_in_kernel: whether to l2-normalise q and k here.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        starts_at_diagonal: whether conjugate gradients start at the solution for the diagonals of
            R_t, as fla's decoding does, and not at 0.
    """
    qf, kf, lamb = q.float(), k.float(), lamb.float()
    if use_qk_l2norm_in_kernel:
        qf, kf = l2norm(qf), l2norm(kf)
    beta_k, log_decay = kf * beta.float().unsqueeze(-1), g.unsqueeze(-1)
    with torch.no_grad():
        system = _build_ridge_system(kf, g, beta, lamb, h_kk_init, max_CG_iteration, cu_seqlens)
        x = system.solve_by_conjugate_gradients(qf, starts_at_diagonal)
    # the values are the first dimension: the gradient of R is that of R x, also off its diagonal
    r_x, h_kk = linear_attention(
        x, beta_k, kf, log_decay,
        scale=1.0, initial_state=h_kk_init, state_v_first=True, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    # the value is x; the residual, about 0, carries the gradients of all inputs of the system
    x = _ImplicitSolution.apply(qf - r_x - lamb * x, x, system)
    o, h_kv = linear_attention(
        x, beta_k, v, log_decay, scale=1.0, initial_state=h_kv_init, cu_seqlens=cu_seqlens
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
    q_row, k_row, v_row, g_row, beta_row = (x.unsqueeze(1) for x in (q, k, v, g, beta))
    o, h_kk, h_kv = chunk_mesa_net(
        q_row, k_row, v_row, g_row, beta_row, lamb, prev_h_kk, prev_h_kv, True, max_CG_iteration,
        starts_at_diagonal=True,
    )  # fmt: skip
    assert h_kk is not None and h_kv is not None
    return o.squeeze(1).to(q.dtype), h_kk, h_kv


class _RidgeSystem(NamedTuple):
    """The matrices R_t + diag(lambda) of all tokens, factored by chunks [M, H, ...]."""

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
    num_cg_steps: int
    """Conjugate gradient steps."""
    layout: ChunkLayout

    def multiply_chunked(self, x: Tensor) -> Tensor:
        """R_t x_t + lambda x_t for all tokens [M, H, C, K]."""
        intra = ((x @ self.k.mT) * self.weights) @ self.k
        return intra + (x * self.from_start) @ self.states + self.lamb * x

    def diagonals(self) -> Tensor:
        """Of R_t + diag(lambda) for all tokens [M, H, C, K]."""
        before = self.states.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        return self.weights @ self.k.square() + self.from_start * before + self.lamb

    def solve_by_conjugate_gradients(
        self, right_hand_sides: Tensor, starts_at_diagonal: bool = False
    ) -> Tensor:
        """Solutions [B, T, H, K] for right-hand sides of that shape."""
        r = to_padded_fp32_chunk_batch(right_hand_sides, self.layout)
        length = r.norm(dim=-1, keepdim=True)
        r = r / length.clamp_min(MIN_DENOMINATOR)
        x = torch.zeros_like(r)
        if starts_at_diagonal:
            x = r / self.diagonals().clamp_min(MIN_DENOMINATOR)
            r = r - self.multiply_chunked(x)
        p, old = r, (r * r).sum(-1, keepdim=True)
        for _ in range(self.num_cg_steps):
            product = self.multiply_chunked(p)
            alpha = old / (p * product).sum(-1, keepdim=True).clamp_min(MIN_DENOMINATOR)
            x = x + alpha * p
            r = r - alpha * product
            new = (r * r).sum(-1, keepdim=True)
            p = r + new / old.clamp_min(MIN_DENOMINATOR) * p
            old = new
        return from_padded_chunk_batch(x * length, self.layout, right_hand_sides.dtype)


class _ImplicitSolution(torch.autograd.Function):
    """x itself; the gradient of the residual is the solution for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, system: _RidgeSystem) -> Tensor:
        ctx.system = system
        return x.clone()

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.system.solve_by_conjugate_gradients(grads[0]), None, None


def _build_ridge_system(
    k: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    initial_h_kk: Tensor | None,
    num_cg_steps: int,
    cu_seqlens: Tensor | None,
) -> _RidgeSystem:
    """Arguments as of `chunk_mesa_net`; `initial_h_kk` is R before the first token."""
    batch, tokens, num_heads, width = k.shape
    layout = build_chunk_layout(batch, tokens, cu_seqlens, CHUNK_SIZE)
    k = to_padded_fp32_chunk_batch(k, layout)
    gc, beta = (to_padded_fp32_chunk_batch(x.unsqueeze(-1), layout).squeeze(-1) for x in (g, beta))
    decays = compute_pairwise_and_boundary_decays(gc)
    updates = (k * (decays.to_end * beta).unsqueeze(-1)).mT @ k
    if initial_h_kk is None:
        initial_h_kk = zeros_per_sequence(g, cu_seqlens, num_heads, width, width)
    chunk_decay = decays.from_start[..., -1:, None].flatten(0, 1)
    states, _ = inter_chunk_scan(updates.flatten(0, 1), chunk_decay, initial_h_kk.float(), layout)
    return _RidgeSystem(
        k=k,
        weights=decays.between_tokens * beta.unsqueeze(-2),
        from_start=decays.from_start.unsqueeze(-1),
        states=states.unflatten(0, (-1, num_heads)),
        lamb=lamb.unsqueeze(-2),
        num_cg_steps=num_cg_steps,
        layout=layout,
    )
