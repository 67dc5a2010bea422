"""Validation: one pass over held-out documents, summed over all ranks.

The figures that follow from the sums are a metric of the `evaluate` library, in `metrics`. Which
documents are held out and how they become rows is decided in `data`.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from flame_accel.data import EvaluationBatches
from flame_accel.evaluation.metrics import LanguageModeling
from flame_accel.parallel import all_reduce_sum, autocast, sum_dtype

CHUNK_TOKENS = 4096
"""Logits of so many tokens are turned into fp32 at a time."""


def validate(
    accelerator: Accelerator,
    model: nn.Module,
    batches: EvaluationBatches,
) -> dict[str, float]:
    """Mean loss over all targets of all ranks, and what follows from it. Every rank must call it.

    Args:
        accelerator: Of the run.
        model: Prepared; left in training mode.
        batches: This rank's, equally many on every rank.

    Returns:
        `eval/loss` (nats per target token), `eval/perplexity`, `eval/bits_per_byte` and
        `eval/accuracy`.
    """
    sums = torch.zeros(3, dtype=sum_dtype(accelerator.device), device=accelerator.device)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            inputs = {
                name: value.to(accelerator.device, non_blocking=True)
                for name, value in batch.items()
                if isinstance(value, Tensor)
            }
            labels = inputs.pop("labels")
            with autocast(accelerator):
                logits = model(**inputs, use_cache=False).logits
            sums += sum_next_token(logits, labels)
    model.train()
    nats, correct, targets = all_reduce_sum(accelerator, sums).tolist()
    figures = LanguageModeling().compute(
        nats=[nats], correct=[int(correct)], targets=[int(targets)], bytes=[batches.num_bytes]
    )
    return {f"eval/{name}": value for name, value in (figures or {}).items()}


def sum_next_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats, correct predictions and number of the targets, as one tensor [3].

    Args:
        logits: [B, T, V]; position t predicts the label at t+1.
        labels: [B, T], -100 where there is no target.
    """
    predictions = logits[:, :-1].reshape(-1, logits.shape[-1])
    targets = labels[:, 1:].reshape(-1)
    sums = torch.zeros(3, dtype=sum_dtype(logits.device), device=logits.device)
    for chunk, wanted in zip(
        predictions.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True
    ):
        chunk = chunk.float()
        sums[0] += functional.cross_entropy(chunk, wanted, reduction="sum")
        sums[1] += (chunk.argmax(-1) == wanted).sum()
        sums[2] += (wanted != -100).sum()
    return sums
