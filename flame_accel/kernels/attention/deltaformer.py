"""DeltaFormer: softmax attention to values that were corrected by softmax attention themselves.

With queries and keys q_t, k_t [D], values v_t [D] and strengths b_t per head (arXiv 2505.19488):

    u_t = v_t - b_t sum_{s < t} softmax_{s < t}(q_t . k_s / sqrt(D)) u_s
    o_t = sum_{s <= t} softmax_{s <= t}(q_t . k_s / sqrt(D)) u_s

The u solve a triangular system, block by block. Time is quadratic in the length; memory is linear,
as the scores of a block are computed again in the backward pass.

Shape letters: B batch, T tokens, N sequences, H heads, G heads of keys and values, D channels, C
tokens of a block.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from fla.ops.deltaformer import parallel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flame_accel.kernels.attention.per_document import map_rows_or_packed_documents
from flame_accel.kernels.attention.softmax_attention import softmax_attention
from flame_accel.kernels.precision import without_autocast

BLOCK = 256
"""Tokens of a block."""
_triton_deltaformer_attn: Callable[..., Tensor] = parallel.deltaformer_attn


@without_autocast
def deltaformer_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Outputs [B, T, H, D] in the dtype of `q`.

    Heads may share keys and values, which fla documents and its kernels do not take.

    Args:
        q: [B, T, H, D].
        k: [B, T, G, D]; H is a multiple of G.
        v: [B, T, G, D].
        beta: [B, T, H]; 1 if None.
        attention_mask: [B, T], 0 for padding. fla's kernels mask the outputs only; here padding
            does not take part in the corrections either, and its outputs are 0.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    beta = torch.ones_like(q[..., 0]) if beta is None else beta

    attend = partial(_deltaformer_attention, block_size=BLOCK)
    if attention_mask is not None:
        return _pack_rows_without_padding(
            lambda edges, *row: map_rows_or_packed_documents(attend, edges, *row),
            attention_mask, q, k, v, beta,
        )  # fmt: skip
    return map_rows_or_packed_documents(attend, cu_seqlens, q, k, v, beta)


def run_triton_deltaformer_attn_without_padding(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    C: int = parallel.BLOCK_SIZE_C,
) -> Tensor:
    """Fla's Triton kernels, with padding left out of the corrections; see `deltaformer_attn`."""
    if attention_mask is None:
        return _triton_deltaformer_attn(q, k, v, beta, None, cu_seqlens, C)
    beta = torch.ones_like(q[..., 0]) if beta is None else beta

    def attend(edges: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        return _triton_deltaformer_attn(q, k, v, beta, None, edges.int(), C)

    return _pack_rows_without_padding(attend, attention_mask, q, k, v, beta)


def _pack_rows_without_padding(
    attend: Callable[..., Tensor], attention_mask: Tensor, *tensors: Tensor
) -> Tensor:
    """Outputs [B, T, H, D] of rows that are packed as documents; 0 for padding.

    Args:
        attend: From boundaries of documents and packed tensors [1, tokens, ...] to outputs.
        attention_mask: [B, T], 0 for padding.
        tensors: [B, T, ...].
    """
    shape = tensors[0].shape[:2]
    held = attention_mask.flatten().nonzero().flatten()
    edges = F.pad(attention_mask.sum(-1).cumsum(0), (1, 0))
    packed = (x.flatten(0, 1).index_select(0, held)[None] for x in tensors)
    o = attend(edges, *packed).squeeze(0)
    return o.new_zeros(shape.numel(), *o.shape[1:]).index_copy(0, held, o).unflatten(0, shape)


def _deltaformer_attention(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, block_size: int
) -> Tensor:
    shared = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(shared, 2) if shared > 1 else x for x in (k, v))
    qf, kf, vf = (x.float().transpose(1, 2) for x in (q, k, v))
    beta_column = beta.float().transpose(1, 2).unsqueeze(-1)
    u = vf[..., :0, :]
    for begin in range(0, q.shape[1], block_size):
        here = slice(begin, begin + block_size)
        u_here = checkpoint(
            _solve_corrected_values_block, qf[..., here, :], kf[..., : begin + block_size, :],
            vf[..., here, :], u, beta_column[..., here, :],
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
        u = torch.cat((u, u_here), -2)
    return softmax_attention(q, k, u.transpose(1, 2).to(q.dtype), left_window=-1, right_window=0)


def _solve_corrected_values_block(
    q: Tensor, k: Tensor, v: Tensor, earlier_corrected_values: Tensor, beta_column: Tensor
) -> Tensor:
    """Corrected values of a block [B, H, C, D], from all earlier ones and the keys up to it."""
    before, size = earlier_corrected_values.shape[-2], v.shape[-2]
    scores = q * q.shape[-1] ** -0.5 @ k.mT
    unseen = torch.ones(size, size, dtype=torch.bool, device=q.device).triu_()
    unseen = F.pad(unseen, (before, 0))
    if before == 0:
        # the first token of a sequence sees nothing; it may look at itself, and counts for nothing
        unseen[0, 0] = False
    weights = scores.masked_fill(unseen, -torch.inf).softmax(-1) * beta_column
    earlier, inside = weights.split((before, size), -1)
    return torch.linalg.solve_triangular(
        inside, v - earlier @ earlier_corrected_values, upper=False, unitriangular=True
    )
