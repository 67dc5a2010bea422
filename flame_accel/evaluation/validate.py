"""Validation: one pass over the validation documents, summed over all ranks.

`metrics` turns the sums into loss, perplexity, bits per byte and accuracy. Which documents are
used for validation, and how they are packed into rows, is decided in `data`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from flame_accel.data import EvaluationBatches
from flame_accel.evaluation.metrics import LanguageModelingMetricFromSums
from flame_accel.parallel import all_reduce_sum_over_dp, autocast_unless_fsdp2, widest_float_dtype

CHUNK_TOKENS = 4096
"""Number of tokens whose logits are converted to fp32 at a time."""


def validate(
    accelerator: Accelerator,
    model: nn.Module,
    batches: EvaluationBatches,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Loss and metrics over all targets of all ranks. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        model: The model as Accelerate prepared it; it is in training mode afterwards.
        batches: This rank's batches; every rank has the same number.
        after_batch: Called after each batch, which the device may still compute.

    Returns:
        `eval/loss` (nats per target token), `eval/perplexity`, `eval/bits_per_byte` and
        `eval/accuracy`.
    """
    sums = torch.zeros(3, dtype=widest_float_dtype(accelerator.device), device=accelerator.device)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            inputs = {
                name: value.to(accelerator.device, non_blocking=True)
                for name, value in batch.items()
                if isinstance(value, Tensor)
            }
            labels = inputs.pop("labels")
            with autocast_unless_fsdp2(accelerator):
                logits = model(**inputs, use_cache=False).logits
            sums += torch.stack(sum_nats_correct_and_targets(logits, labels))
            after_batch()
    model.train()
    nats, correct, targets = all_reduce_sum_over_dp(accelerator, sums).tolist()
    figures = LanguageModelingMetricFromSums().compute(
        nats=[nats],
        correct=[int(correct)],
        targets=[int(targets)],
        bytes=[batches.num_target_bytes],
    )
    return {f"eval/{name}": value for name, value in (figures or {}).items()}


class TargetSums(NamedTuple):
    """Sums over target tokens, each 0-dimensional and on the device of the logits."""

    nats: Tensor
    correct: Tensor
    """Number of targets that have the largest logit."""
    targets: Tensor
    """Number of targets."""


def sum_nats_correct_and_targets(logits: Tensor, labels: Tensor) -> TargetSums:
    """Sums over the targets: loss in nats, correct predictions, and number of targets.

    Args:
        logits: [B, T, V]; position t predicts the label at t+1.
        labels: [B, T], -100 where there is no target.
    """
    predictions = logits[:, :-1].reshape(-1, logits.shape[-1])
    targets = labels[:, 1:].reshape(-1)
    nats, correct, counted = torch.zeros(
        3, dtype=widest_float_dtype(logits.device), device=logits.device
    )
    for chunk, wanted in zip(
        predictions.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True
    ):
        chunk = chunk.float()
        nats += functional.cross_entropy(chunk, wanted, reduction="sum")
        correct += (chunk.argmax(-1) == wanted).sum()
        counted += (wanted != -100).sum()
    return TargetSums(nats, correct, counted)
