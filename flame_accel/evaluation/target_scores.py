"""How well logits predict the next tokens: the loss and the prediction of every target.

Sums over rows and positions are made in `validate`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from flame_accel.parallel import widest_float_dtype

CHUNK_TOKENS = 4096
"""Number of tokens whose logits are converted to fp32 at a time."""
NO_TARGET = -100


class TargetScores(NamedTuple):
    """The score of each position's prediction of the token behind it; all [B, T]."""

    nats: Tensor
    """Negative log-likelihood in the widest float type; 0 where there is no target."""
    predictions: Tensor
    """Token with the largest logit."""
    references: Tensor
    """The target, or -100."""

    @property
    def is_target(self) -> Tensor:
        """Whether there is a target, bool [B, T]."""
        return self.references != NO_TARGET

    @property
    def is_correct(self) -> Tensor:
        """Whether the target has the largest logit, bool [B, T]."""
        return self.predictions == self.references


def next_labels(labels: Tensor) -> Tensor:
    """The target of the prediction of each position, [B, T], from labels at their own positions."""
    return functional.pad(labels[:, 1:], (0, 1), value=NO_TARGET)


def score_targets(logits: Tensor, targets: Tensor) -> TargetScores:
    """Scores of the targets; each depends on its own logits only, whatever the batch.

    Args:
        logits: [B, T, V].
        targets: [B, T], what position t predicts, -100 where there is no target.
    """
    flat, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    nats = torch.empty(len(wanted), dtype=torch.float32, device=logits.device)
    predictions = torch.empty_like(wanted)
    for start in range(0, len(wanted), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        chunk = flat[part].float()
        nats[part] = functional.cross_entropy(chunk, wanted[part], reduction="none")
        predictions[part] = chunk.argmax(-1)
    nats = nats.to(widest_float_dtype(logits.device))
    return TargetScores(nats.view_as(targets), predictions.view_as(targets), targets)


def count_answers(scores: TargetScores) -> Tensor:
    """Answers of each row, and those that are predicted as a whole, [B, 2].

    An answer is a run of targets of successive positions.
    """
    is_target = scores.is_target
    starts = is_target & ~functional.pad(is_target[:, :-1], (1, 0))
    # number of the answer, from 1, at the positions of its targets, 0 elsewhere
    answer = starts.cumsum(dim=1) * is_target
    wrong = torch.zeros_like(answer[:, :1]).expand(-1, answer.shape[1] + 1).clone()
    wrong.scatter_add_(1, answer, (is_target & ~scores.is_correct).to(answer.dtype))
    answers = starts.sum(dim=1)
    # answer 0 stands for positions without a target
    numbers = torch.arange(wrong.shape[1], device=answer.device)
    has_error = (wrong > 0) & (numbers > 0) & (numbers <= answers[:, None])
    return torch.stack([answers, answers - has_error.sum(dim=1)], dim=1)
