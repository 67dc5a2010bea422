"""HGRN under fla's names: an elementwise gated recurrence, in chunks, with its own backward pass.

    h_t = exp(g_t) * h_{t-1} + x_t,    elementwise

(Qin et al., arXiv 2311.04823). First all chunks advance token by token at the same time, each from
a zero state; then the inter-chunk scan adds the decayed state that each chunk starts from. Decays
over several tokens are products of decays, so that no exponent is formed that could overflow.
`mamba` scans its states with `gated_scan`.

Shape letters: B batch, T tokens, N sequences, M chunks, C tokens of a chunk, D width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    ChunkLayout,
    build_chunk_layout,
    from_padded_chunk_batch,
    restore_state_order,
    sort_states_longest_first,
    to_padded_fp32_chunk_batch,
)
from flame_accel.kernels.recurrence.sequences import (
    OutputsAndOptionalStates,
    zeros_per_sequence,
)

CHUNK_SIZE = 32
"""Tokens of a chunk."""


@without_autocast
def fused_recurrent_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """States h [B, T, D] in the dtype of `x`, and the last ones [N, D] in fp32, or None.

    Args:
        x: [B, T, D] inputs.
        g: [B, T, D] log decays.
        initial_state: [N, D]; zeros if None.
        output_final_state: whether to return the last states.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    batch, tokens, width = x.shape
    if initial_state is None:
        initial_state = zeros_per_sequence(x, cu_seqlens, width)
    layout = build_chunk_layout(batch, tokens, cu_seqlens, CHUNK_SIZE)
    xc, gc = (to_padded_fp32_chunk_batch(y.unsqueeze(2), layout).squeeze(1) for y in (x, g))
    h, final_state = gated_scan(xc, gc.exp(), initial_state.float(), layout)
    o = from_padded_chunk_batch(h.unsqueeze(1), layout, x.dtype).squeeze(2)
    return o, final_state if output_final_state else None


class ElementwiseStates(NamedTuple):
    """States h, fp32."""

    at_tokens: Tensor
    """[M, C, D]"""
    final: Tensor
    """[N, D] after each sequence."""


def gated_scan(
    inputs: Tensor, decays: Tensor, initial_state: Tensor, layout: ChunkLayout
) -> ElementwiseStates:
    """h_t = a_t h_{t-1} + x_t: in chunks.

    Args:
        inputs: x, [M, C, D], 0 in the padding.
        decays: a, [M, C, D], 1 in the padding.
        initial_state: [N, D] states before the first tokens.
        layout: the chunks.
    """
    return ElementwiseStates(*_GatedScan.apply(inputs, decays, initial_state, layout))


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, initial_state: Tensor, layout: ChunkLayout
    ) -> tuple[Tensor, Tensor]:
        h, decay_from_start = x.clone(), a.clone()
        for c in range(1, layout.chunk_size):
            h[:, c].addcmul_(a[:, c], h[:, c - 1])
            decay_from_start[:, c].mul_(decay_from_start[:, c - 1])
        carry = sort_states_longest_first(initial_state, layout).clone()
        state_before = torch.empty_like(h[:, 0])
        for first, count in layout.rounds:
            here = slice(first, first + count)
            state_before[here] = carry[:count]
            h[here].addcmul_(decay_from_start[here], carry[:count].unsqueeze(1))
            carry[:count] = h[here, -1]
        ctx.save_for_backward(a, h, state_before)
        ctx.layout = layout
        return h, restore_state_order(carry, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, h, state_before = ctx.saved_tensors
        layout: ChunkLayout = ctx.layout
        dh, decay_to_end = grads[0].clone(), torch.empty_like(a)
        decay_to_end[:, -1] = 1.0
        for c in range(layout.chunk_size - 1, 0, -1):
            dh[:, c - 1].addcmul_(a[:, c], dh[:, c])
            torch.mul(decay_to_end[:, c], a[:, c], out=decay_to_end[:, c - 1])
        carry = sort_states_longest_first(grads[1], layout).clone()
        for first, count in reversed(layout.rounds):
            here = slice(first, first + count)
            dh[here].addcmul_(decay_to_end[here], carry[:count].unsqueeze(1))
            torch.mul(dh[here, 0], a[here, 0], out=carry[:count])
        da = torch.empty_like(a)
        torch.mul(dh[:, 0], state_before, out=da[:, 0])
        torch.mul(dh[:, 1:], h[:, :-1], out=da[:, 1:])
        return dh, da, restore_state_order(carry, layout), None
