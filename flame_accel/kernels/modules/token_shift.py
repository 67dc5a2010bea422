"""The difference of each token to the one before it, under fla's names (RWKV6, RWKV7)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.recurrence.sequences import last_tokens


def token_shift(
    x: Tensor,
    cu_seqlens: Tensor | None = None,
    cache: Tensor | None = None,
    output_cache: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """x_{t-1} - x_t; the token before the first of a sequence is `cache`, or zero.

    Args:
        x: [B, T, D].
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        cache: [N, D] last tokens of what came before.
        output_cache: return the last token of every sequence [N, D] too; of empty ones, `cache`.
    """
    first = None if cache is None else cache.reshape(-1, x.shape[-1]).to(x.dtype)
    if cu_seqlens is not None:
        first = x.new_zeros(cu_seqlens.numel() - 1, x.shape[-1]) if first is None else first
        held = cu_seqlens.diff() > 0
        before = F.pad(x[0, :-1], (0, 0, 1, 0))
        before = before.index_copy(0, cu_seqlens[:-1][held].long(), first[held]).unsqueeze(0)
    elif first is not None:
        before = torch.cat((first.unsqueeze(1), x[:, :-1]), 1)
    else:
        before = F.pad(x[:, :-1], (0, 0, 1, 0))
    delta = before - x
    if not output_cache:
        return delta
    return delta, last_tokens(x, cu_seqlens, first)
