"""Passes of a model over the rows of a validation set: sums by row and by position, of all ranks.

Each row is a few numbers, from which metrics make figures (`metric_modules`), so that these do not
depend on how rows are split over batches and ranks. Which documents are used, and how they are
packed, is decided in `data`; what is evaluated when, in `evaluator`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flame_accel.data import EvaluationBatches
from flame_accel.evaluation.target_scores import (
    TargetScores,
    count_answers,
    next_labels,
    score_targets,
)
from flame_accel.parallel import (
    all_gather_over_dp,
    all_reduce_sum_over_dp,
    autocast_unless_fsdp2,
    widest_float_dtype,
)

TokenPairs = Callable[[list[int], list[int]], None]
"""Takes predictions and references of the targets of a batch, of all ranks."""


class RowSums(NamedTuple):
    """Sums over the targets of each row of a set, in no particular order of the rows."""

    nats: list[float]
    correct: list[int]
    """Number of targets that have the largest logit."""
    targets: list[int]
    answers: list[int]
    """Number of runs of successive targets."""
    correct_answers: list[int]
    """Number of those in which every target has the largest logit."""


class PositionMeans(NamedTuple):
    """Means over the targets of ranges of positions, as in evaluations.jsonl."""

    edges: list[int]
    """Range i is from edges[i] up to but excluding edges[i + 1]: the position of a target in its
    context, which is the number of tokens before it."""
    loss: list[float]
    """Nats per target; NaN where there is none."""
    accuracy: list[float]


class PassResult(NamedTuple):
    """What a pass over a set found, the same on every rank."""

    rows: RowSums
    by_position: PositionMeans
    carried: bool
    """Whether rows were read in pieces, with the state carried from one to the next."""


def evaluate_rows(
    accelerator: Accelerator,
    model: nn.Module,
    batches: EvaluationBatches,
    *,
    position_step: int,
    piece_length: int | None = None,
    take_tokens: TokenPairs | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> PassResult:
    """One pass over all rows of all ranks. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        model: The model as Accelerate prepared it, in evaluation mode.
        batches: This rank's batches; every rank has the same number.
        position_step: Width of the ranges of positions.
        piece_length: Tokens of the pieces in which rows are read, with the model's cache carried
            from one to the next; for rows without boundaries. None reads them in one piece.
        take_tokens: Called on the main process with what was predicted; None gathers nothing.
        after_batch: Called after each batch, which the device may still compute.
    """
    device, dtype = accelerator.device, widest_float_dtype(accelerator.device)
    length = batches.row_length
    row_sums: list[Tensor] = []
    position_sums = torch.zeros(3, length, dtype=dtype, device=device)
    carried = piece_length is not None
    for batch in batches:
        inputs = {
            name: value.to(device, non_blocking=True)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        targets = next_labels(inputs.pop("labels"))
        with torch.no_grad(), autocast_unless_fsdp2(accelerator):
            if carried and piece_length is not None:
                scores = _score_in_pieces(model, inputs["input_ids"], targets, piece_length)
                carried = scores is not None
            else:
                scores = None
            if scores is None:
                scores = score_targets(model(**inputs, use_cache=False).logits, targets)
        row_sums.append(_sum_over_rows(scores, length))
        _add_by_position(position_sums, scores, inputs.get("cu_seqlens"))
        if take_tokens is not None:
            _gather_tokens(accelerator, scores, take_tokens)
        after_batch()
    table = all_gather_over_dp(accelerator, torch.cat(row_sums)).flatten(0, 1)
    nats, *counts = table.T.tolist()
    return PassResult(
        RowSums(nats, *([int(count) for count in column] for column in counts)),
        _position_means(all_reduce_sum_over_dp(accelerator, position_sums), position_step),
        carried,
    )


def _score_in_pieces(
    model: nn.Module, input_ids: Tensor, targets: Tensor, piece_length: int
) -> TargetScores | None:
    """Scores of rows [B, T] that are read in pieces; None if the model has no cache."""
    cache: object = None
    scores: list[TargetScores] = []
    pieces = zip(input_ids.split(piece_length, 1), targets.split(piece_length, 1), strict=True)
    for ids, wanted in pieces:
        output = model(input_ids=ids, use_cache=True, past_key_values=cache)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            return None
        scores.append(score_targets(output.logits, wanted))
    return TargetScores(*(torch.cat(parts, dim=1) for parts in zip(*scores, strict=True)))


def _sum_over_rows(scores: TargetScores, row_length: int) -> Tensor:
    """The fields of `RowSums` as columns, [rows, 5]; varlen rows lie one behind the other."""
    rows = TargetScores(*(part.reshape(-1, row_length) for part in scores))
    sums = torch.stack([rows.nats.sum(1), rows.is_correct.sum(1), rows.is_target.sum(1)], dim=1)
    return torch.cat([sums, count_answers(rows).to(sums.dtype)], dim=1)


def _add_by_position(sums: Tensor, scores: TargetScores, cu_seqlens: Tensor | None) -> None:
    """Adds nats, correct predictions and targets [3, T] at the position of each target."""
    count = scores.references.numel()
    positions = torch.arange(count, device=sums.device)
    if cu_seqlens is None:
        positions %= scores.references.shape[1]
    else:
        lengths = cu_seqlens.diff()
        positions -= torch.repeat_interleave(cu_seqlens[:-1], lengths, output_size=count)
    # of the target: one behind what predicts it; the last position of a row has none
    positions = (positions + 1).clamp(max=sums.shape[1] - 1)
    values = torch.stack([scores.nats, scores.is_correct, scores.is_target])
    sums.index_add_(1, positions, values.flatten(1).to(sums.dtype))


def _gather_tokens(accelerator: Accelerator, scores: TargetScores, take_tokens: TokenPairs) -> None:
    predictions, references = (
        all_gather_over_dp(accelerator, part.flatten()).flatten()
        for part in (scores.predictions, scores.references)
    )
    if accelerator.is_main_process:
        wanted = references >= 0
        take_tokens(predictions[wanted].tolist(), references[wanted].tolist())


def _position_means(sums: Tensor, step: int) -> PositionMeans:
    """Means of ranges of positions from sums [3, T]; ranges behind the last target are left out."""
    sums = sums.cpu()
    last = int(sums[2].nonzero().max()) if bool(sums[2].any()) else 0
    edges = [*range(0, last + 1, step), last + 1]
    ranges: Iterator[Sequence[float]] = (
        sums[:, start:stop].sum(1).tolist() for start, stop in pairwise(edges)
    )
    means = [
        (nats / targets, correct / targets) if targets else (torch.nan, torch.nan)
        for nats, correct, targets in ranges
    ]
    return PositionMeans(edges, [loss for loss, _ in means], [right for _, right in means])
