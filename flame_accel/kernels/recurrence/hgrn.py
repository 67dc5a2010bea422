"""HGRN under fla's names: a gated recurrence of vectors, in chunks, with its own backward pass.

    h_t = exp(g_t) * h_{t-1} + x_t,    elementwise

(Qin et al., arXiv 2311.04823). All chunks advance token by token at the same time; then a loop over
chunks adds what each inherits. Decays over several tokens are products of decays, so that no
exponent is formed that could overflow. `mamba` scans its states with it.

Shape letters: B batch, T tokens, N sequences, M chunks, C tokens of a chunk, D channels.
"""

from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    Chunks,
    cut,
    from_chunks,
    sort_sequences,
    to_chunks,
    unsort_sequences,
)

CHUNK = 32
"""Tokens of a chunk."""


def chunk_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As `fused_recurrent_hgrn`; fla's own has no `cu_seqlens` here."""
    return fused_recurrent_hgrn(x, g, initial_state, output_final_state)


@without_autocast
def fused_recurrent_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """States h [B, T, D] in the dtype of `x`, and the last ones [N, D] in fp32, or None.

    Args:
        x: [B, T, D] inputs.
        g: [B, T, D] log decays.
        initial_state: [N, D]; zeros if None.
        output_final_state: whether to return the last states.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    batch, tokens, width = x.shape
    num_sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    if initial_state is None:
        initial_state = x.new_zeros(num_sequences, width, dtype=torch.float32)
    chunks = cut(batch, tokens, cu_seqlens, CHUNK)
    xc, gc = (to_chunks(y.unsqueeze(2), chunks).squeeze(1) for y in (x, g))
    h, final = gated_scan(xc, gc.exp(), initial_state.float(), chunks)
    o = from_chunks(h.unsqueeze(1), chunks, x.dtype).squeeze(2)
    return o, final if output_final_state else None


def gated_scan(x: Tensor, a: Tensor, initial: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + x_t: states [M, C, D], and [N, D] after each sequence; all fp32.

    Args:
        x: [M, C, D] inputs, 0 in the padding.
        a: [M, C, D] decays, 1 in the padding.
        initial: [N, D] states before the first tokens.
        chunks: the layout.
    """
    return _GatedScan.apply(x, a, initial, chunks)


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, initial: Tensor, chunks: Chunks
    ) -> tuple[Tensor, Tensor]:
        h, inherited = x.clone(), a.clone()
        for c in range(1, chunks.size):
            h[:, c].addcmul_(a[:, c], h[:, c - 1])
            inherited[:, c].mul_(inherited[:, c - 1])
        carry = sort_sequences(initial, chunks).clone()
        before = torch.empty_like(h[:, 0])
        for first, count in chunks.rounds:
            here = slice(first, first + count)
            before[here] = carry[:count]
            h[here].addcmul_(inherited[here], carry[:count].unsqueeze(1))
            carry[:count] = h[here, -1]
        ctx.save_for_backward(a, h, before)
        ctx.chunks = chunks
        return h, unsort_sequences(carry, chunks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, h, before = ctx.saved_tensors
        chunks: Chunks = ctx.chunks
        dh, passed = grads[0].clone(), torch.empty_like(a)
        passed[:, -1] = 1.0
        for c in range(chunks.size - 1, 0, -1):
            dh[:, c - 1].addcmul_(a[:, c], dh[:, c])
            torch.mul(passed[:, c], a[:, c], out=passed[:, c - 1])
        carry = sort_sequences(grads[1], chunks).clone()
        for first, count in reversed(chunks.rounds):
            here = slice(first, first + count)
            dh[here].addcmul_(passed[here], carry[:count].unsqueeze(1))
            torch.mul(dh[here, 0], a[here, 0], out=carry[:count])
        da = torch.empty_like(a)
        torch.mul(dh[:, 0], before, out=da[:, 0])
        torch.mul(dh[:, 1:], h[:, :-1], out=da[:, 1:])
        return dh, da, unsort_sequences(carry, chunks), None
