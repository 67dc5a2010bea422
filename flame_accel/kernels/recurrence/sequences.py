"""The sequences of a batch: its rows, or the documents of one packed row (`cu_seqlens`).

Splits, shifts, sums, first and last tokens, reversal, and initial states. How sequences are cut
into chunks is in `chunking`.

Shape letters: B batch, T tokens, N sequences (B, or those of a packed row, then B = 1), H heads,
K key width, V value width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

OutputsAndFinalStates = tuple[Tensor, Tensor]
"""Outputs [B, T, ...] of all tokens, and states [N, ...] after the last one of each sequence."""

OutputsAndOptionalStates = tuple[Tensor, Tensor | None]
"""As `OutputsAndFinalStates`; None unless final states were asked for (`output_final_state`)."""


def count_sequences(batch_size: int, cu_seqlens: Tensor | None) -> int:
    """N: the number of rows, or of the sequences between the boundaries `cu_seqlens` [N + 1]."""
    return batch_size if cu_seqlens is None else cu_seqlens.numel() - 1


def split_sequences(x: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, ...]:
    """[1, T, ...] -> [1, length, ...] for each packed sequence; `x` alone if nothing is packed."""
    return (x,) if cu_seqlens is None else x.split(cu_seqlens.diff().tolist(), 1)


def first_tokens(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """[B, T, ...] -> the first token of each sequence [N, ...], zeros for empty ones."""
    return x[:, 0] if cu_seqlens is None else _tokens_or(None, x, cu_seqlens[:-1], cu_seqlens)


def last_tokens(x: Tensor, cu_seqlens: Tensor | None, before: Tensor | None = None) -> Tensor:
    """[B, T, ...] -> the last token of each sequence [N, ...]; of empty ones `before`, or zeros."""
    return x[:, -1] if cu_seqlens is None else _tokens_or(before, x, cu_seqlens[1:] - 1, cu_seqlens)


def _tokens_or(before: Tensor | None, x: Tensor, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
    held = (cu_seqlens.diff() > 0).view(-1, *[1] * (x.dim() - 2))
    found = x[0, tokens.clamp(0, x.shape[1] - 1)]
    return torch.where(held, found, 0 if before is None else before.to(found.dtype))


def value_of_previous_token(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """y_t = x_{t-1} within each sequence, 0 at its first token; [B, T, ...]."""
    if cu_seqlens is None:
        return F.pad(x[:, :-1], (0, 0) * (x.dim() - 2) + (1, 0))
    return x.roll(1, 1).index_fill(1, cu_seqlens[:-1][cu_seqlens.diff() > 0].long(), 0)


def value_of_next_token(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """y_t = x_{t+1} within each sequence, 0 at its last token; [B, T, ...]."""
    if cu_seqlens is None:
        return F.pad(x[:, 1:], (0, 0) * (x.dim() - 2) + (0, 1))
    return x.roll(-1, 1).index_fill(1, cu_seqlens[1:][cu_seqlens.diff() > 0].long() - 1, 0)


def cumsum_per_sequence(
    x: Tensor, cu_seqlens: Tensor | None, initial_sums: Tensor | None = None
) -> Tensor:
    """Running sums [B, T, ...] over the tokens of each sequence, from `initial_sums` [N, ...]."""
    sums = [sequence.cumsum(1) for sequence in split_sequences(x, cu_seqlens)]
    if initial_sums is not None:
        starts = (initial_sums,) if cu_seqlens is None else initial_sums.split(1)
        sums = [y + start.unsqueeze(1) for y, start in zip(sums, starts, strict=True)]
    return torch.cat(sums, 1)


def zeros_per_sequence(x: Tensor, cu_seqlens: Tensor | None, *shape: int) -> Tensor:
    """fp32 zeros [N, *shape] for the sequences of `x` [B, T, ...], on its device."""
    return x.new_zeros(count_sequences(x.shape[0], cu_seqlens), *shape, dtype=torch.float32)


def every_sequence_has_one_token(num_tokens: int, cu_seqlens: Tensor | None) -> bool:
    """Whether every sequence has a single token, as in generation."""
    if cu_seqlens is None:
        return num_tokens == 1
    return cu_seqlens.numel() == num_tokens + 1 and bool((cu_seqlens.diff() == 1).all())


def fp32_key_first_state_or_zeros(
    initial_state: Tensor | None,
    q: Tensor,
    v: Tensor,
    *,
    state_v_first: bool,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """[N, H, K, V] fp32 from [N, H, K, V], or from [N, H, V, K] if `state_v_first`; zeros if None.

    The widths are those of `q` [B, T, H, K] and `v` [B, T, H, V].
    """
    if initial_state is not None:
        return initial_state.float().mT if state_v_first else initial_state.float()
    return zeros_per_sequence(q, cu_seqlens, *q.shape[2:], v.shape[-1])


def run_operator_from_last_token(
    operator: Callable[..., OutputsAndOptionalStates],
    inputs: Sequence[Tensor | None],
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> OutputsAndOptionalStates:
    """Runs `operator` over each sequence from its last token to its first.

    Args:
        operator: called as `operator(*inputs, initial_state=..., cu_seqlens=...)`; returns outputs
            [B, T, ...] and states [N, ...] or None.
        inputs: [B, T, ...] each, or None.
        initial_state: [N, ...], or None.
        cu_seqlens: [N + 1] boundaries of packed sequences.

    Returns:
        Outputs and states in the order of the inputs.
    """
    inputs = [None if x is None else x.flip(1) for x in inputs]
    if cu_seqlens is None:
        o, state = operator(*inputs, initial_state=initial_state, cu_seqlens=None)
        return o.flip(1), state
    # a flipped row also has its sequences in reverse order
    o, state = operator(
        *inputs,
        initial_state=None if initial_state is None else initial_state.flip(0),
        cu_seqlens=cu_seqlens[-1] - cu_seqlens.flip(0),
    )
    return o.flip(1), None if state is None else state.flip(0)
