"""What the intra-chunk computations of linear attention and of the delta rule share.

Both form scores A_ij = sum_d q_id k_jd exp(G_id - G_jd), where G are the cumulative log decays of a
chunk. With decays per channel (GLA, arXiv 2312.06635, section 4.3) there are two ways not to
overflow, and each chunk takes one by its own decays:

* gentle decays (`MAX_GENTLE_SUM`, `MIN_GENTLE_STEP`): one product of queries times exp(G - G_mid)
  and keys times exp(G_mid - G), which stay within exp(MAX_GENTLE_SUM);
* steep decays: block by block, in `linear_attention_intra_chunk`.

Shape letters: P chunks of all heads, C tokens of a chunk, K key width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_GENTLE_SUM = 30.0
"""Limit of the log decays of a gentle chunk, summed from its middle to either end."""
MIN_GENTLE_STEP = -4.0
"""Least log decay in a gentle chunk: gradients of g below it drown in what cancels around them."""


class QueryKeyDecayGradients(NamedTuple):
    """Shaped as the queries, the keys and the log decays, which there may be none of."""

    dq: Tensor
    dk: Tensor
    dg: Tensor | None


class IntraChunkTermsWithBackward(NamedTuple):
    """What the inter-chunk scan and the outputs need from the chunks, all fp32.

    Linear attention has C queries and C keys per chunk; the delta rule stacks 2 C queries, and C or
    2 C keys, along dimension 1.
    """

    scores: Tensor
    """[P, queries, keys] decayed and masked."""
    q_from_start: Tensor
    """Queries times their decay from the start of the chunk [P, queries, K]."""
    k_to_end: Tensor
    """Keys times their decay to the end of the chunk [P, keys, K]."""
    chunk_decay: Tensor | None
    """[P, K or 1, 1] decay of the state over the whole chunk."""
    backward: Callable[..., QueryKeyDecayGradients]
    """Takes (saved, dscores, dq_from_start, dk_to_end, dlog_chunk_decay [P, K]).

    It may overwrite the gradients that it is given.
    """
    saved: list[Tensor]


def compute_gentle_and_steep_chunks(
    q: Tensor,
    k: Tensor,
    g: Tensor,
    compute_gentle_from_cumulative_g: Callable[
        [Tensor, Tensor, Tensor], IntraChunkTermsWithBackward
    ],
    compute_steep_from_g: Callable[[Tensor, Tensor, Tensor], IntraChunkTermsWithBackward],
) -> IntraChunkTermsWithBackward:
    """Computes each chunk in the way that its log decays allow, and merges the results.

    Args:
        q: [P, queries, K].
        k: [P, keys, K].
        g: log decays [P, C, K].
        compute_gentle_from_cumulative_g: takes q, k and the cumulative log decays of the
            gentle chunks.
        compute_steep_from_g: takes q, k and g of the steep chunks.
    """
    cumulative_g = g.cumsum(1)
    middle = cumulative_g[:, g.shape[1] // 2 - 1]
    sums = torch.maximum(-middle, middle - cumulative_g[:, -1]).amax(-1)
    is_steep = (sums > MAX_GENTLE_SUM) | (g.amin((1, 2)) < MIN_GENTLE_STEP)
    if not is_steep.any():
        return compute_gentle_from_cumulative_g(q, k, cumulative_g)
    if is_steep.all():
        return compute_steep_from_g(q, k, g)
    gentle_index, steep_index = (x.nonzero().flatten() for x in (~is_steep, is_steep))
    gentle = compute_gentle_from_cumulative_g(*(x[gentle_index] for x in (q, k, cumulative_g)))
    steep = compute_steep_from_g(*(x[steep_index] for x in (q, k, g)))
    index = torch.cat((gentle_index, steep_index))
    pairs = zip(gentle[:4], steep[:4], strict=True)
    scores, q_from_start, k_to_end, chunk_decay = (
        _concatenate_chunks_in_order(index, pair) for pair in pairs
    )
    backward = partial(
        _backward_gentle_and_steep_chunks, gentle.backward, steep.backward, len(gentle.saved)
    )
    saved = [gentle_index, steep_index, *gentle.saved, *steep.saved]
    return IntraChunkTermsWithBackward(scores, q_from_start, k_to_end, chunk_decay, backward, saved)


def _backward_gentle_and_steep_chunks(
    gentle_backward: Callable[..., QueryKeyDecayGradients],
    steep_backward: Callable[..., QueryKeyDecayGradients],
    num_gentle_saved: int,
    saved: list[Tensor],
    *grads: Tensor,
) -> QueryKeyDecayGradients:
    gentle_index, steep_index, *saved = saved
    gentle_saved, steep_saved = saved[:num_gentle_saved], saved[num_gentle_saved:]
    gentle = gentle_backward(gentle_saved, *(x[gentle_index] for x in grads))
    steep = steep_backward(steep_saved, *(x[steep_index] for x in grads))
    index = torch.cat((gentle_index, steep_index))
    pairs = zip(gentle, steep, strict=True)
    return QueryKeyDecayGradients(*(_concatenate_chunks_in_order(index, pair) for pair in pairs))


def _concatenate_chunks_in_order(
    target_index: Tensor, gentle_and_steep: Sequence[Tensor | None]
) -> Tensor:
    """Concatenates the tensors, and puts chunk i of the result at `target_index[i]`."""
    x = torch.cat([part for part in gentle_and_steep if part is not None])
    return torch.empty_like(x).index_copy_(0, target_index, x)


def reverse_cumsum_tokens(x: Tensor) -> Tensor:
    """y_i = x_i + ... + x_C along dimension 1."""
    return x.flip(1).cumsum(1).flip(1)


def exclusive_cumsum_tokens(x: Tensor) -> Tensor:
    """y_i = x_1 + ... + x_{i-1} along dimension 1; [P, C, K]."""
    return F.pad(x[:, :-1].cumsum(1), (0, 0, 1, 0))
