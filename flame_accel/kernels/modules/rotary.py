"""Rotary position embeddings in PyTorch (Su et al., RoFormer, arXiv 2104.09864)."""

import torch
from torch import Tensor


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Rotates the first 2R channels of `x` [B, T, H, D] by its tokens' angles; the others pass.

    Args:
        x: [B, T, H, D].
        cos: [positions, R].
        sin: [positions, R].
        interleaved: pairs are neighbouring channels instead of channels R apart.
        inplace: whether `x` receives the result.
        seqlen_offsets: position of a sequence's first token, one for all or [N]. Tokens whose
            position `cos` does not have (padding on the left) give 0.
        cu_seqlens: [N + 1] boundaries of packed sequences, in all rows one after the other.
    """
    if cu_seqlens is not None and x.shape[0] > 1:
        row = x.flatten(0, 1).unsqueeze(0)
        y = rotary_embedding(row, cos, sin, interleaved, False, seqlen_offsets, cu_seqlens)
        y = y.view(x.shape)
        return x.copy_(y) if inplace else y
    width = 2 * cos.shape[-1]
    position = _rotary_positions(x, seqlen_offsets, cu_seqlens)
    valid = ((position >= 0) & (position < cos.shape[0])).unsqueeze(-1).unsqueeze(-1)
    position = position.clamp(0, cos.shape[0] - 1)
    c, s = cos[position].unsqueeze(-2).float(), sin[position].unsqueeze(-2).float()
    turned, rest = x[..., :width].float(), x[..., width:]
    first, second = (
        (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    )
    pair = (first * c - second * s, first * s + second * c)
    y = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    y = torch.cat((torch.where(valid, y, 0.0).to(x.dtype), rest), -1)
    return x.copy_(y) if inplace else y


def _rotary_positions(x: Tensor, seqlen_offsets: int | Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B or 1, T] position of every token in its sequence."""
    position = torch.arange(x.shape[1], device=x.device)
    if cu_seqlens is None:
        offset = seqlen_offsets[:, None] if isinstance(seqlen_offsets, Tensor) else seqlen_offsets
        return position.unsqueeze(0) + offset
    first = cu_seqlens[:-1] - seqlen_offsets
    return (position - torch.repeat_interleave(first, cu_seqlens.diff())).unsqueeze(0)
