"""Softmax attention written out as its formula, and comparisons of values and gradients with it."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from flame_accel.kernels.attention.flash_attention import flash_attn_varlen_func
from tests.helpers.gradients import assert_close, outputs_and_gradients

TOLERANCE = 1e-4


LENGTHS = (1, 40, 93, 1, 0, 66, 5, 130, 17, 93)


WINDOWS = [None, 2, 7, 70]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
) -> Tensor:
    """Softmax attention as flash-attn defines it, in double precision."""
    groups, ahead = q.shape[2] // k.shape[2], k.shape[1] - q.shape[1]
    q, k, v = q.double(), *(x.double().repeat_interleave(groups, 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (scale or q.shape[-1] ** -0.5)
    i = torch.arange(q.shape[1], device=q.device)[:, None] + ahead
    j = torch.arange(k.shape[1], device=q.device)
    hidden = (j > i) if causal else torch.zeros_like(scores[0, 0], dtype=torch.bool)
    if window[0] >= 0:
        hidden = hidden | (j < i - window[0])
    if window[1] >= 0:
        hidden = hidden | (j > i + window[1])
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhij,bjhd->bihd", weights, v).float()


def inputs(batch: int, queries: int, keys: int, heads: int, groups: int, width: int = 16):
    torch.manual_seed(queries + keys)
    q = torch.randn(batch, queries, heads, width)
    return [q, *torch.randn(2, batch, keys, groups, width).unbind()]


Lengths = tuple[int, ...]


Window = tuple[int, int]


def packed(
    lengths_q: Lengths,
    lengths_k: Lengths,
    tensors: Sequence[Tensor],
    causal: bool = True,
    window: Window = (-1, -1),
) -> list[Tensor]:
    function = partial(
        flash_attn_varlen_func,
        cu_seqlens_q=torch.tensor([0, *lengths_q]).cumsum(0),
        cu_seqlens_k=torch.tensor([0, *lengths_k]).cumsum(0),
        max_seqlen_q=max(lengths_q),
        max_seqlen_k=max(lengths_k),
        causal=causal,
        window_size=window,
    )
    return outputs_and_gradients(function, [x[0] for x in tensors])


def separate(
    lengths_q: Lengths,
    lengths_k: Lengths,
    tensors: Sequence[Tensor],
    causal: bool = True,
    window: Window = (-1, -1),
) -> list[Tensor]:
    def by_document(q, k, v):
        parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
        return torch.cat([reference(*(x[None] for x in part), causal, window)[0] for part in parts])

    return outputs_and_gradients(by_document, [x[0] for x in tensors])


# a query that sees one key has zero gradients, which rounding does not leave at zero
assert_same = partial(assert_close, absolute=1e-5)
