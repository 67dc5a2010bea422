"""Metrics of a language model from sums over its targets, as a metric of the `evaluate` library.

Its inputs are sums and not the predictions of every token, so that a validation set of any size
takes a few numbers. The sums are computed in `validate`.
"""

import math
from collections.abc import Sequence

import datasets
import evaluate


class LanguageModelingMetricFromSums(evaluate.Metric):
    """Loss, perplexity, bits per byte and next-token accuracy from rows of sums."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Loss, perplexity, bits per byte and next-token accuracy",
            citation="",
            inputs_description="nats and correct predictions summed over targets; bytes of text",
            features=datasets.Features(
                {
                    "nats": datasets.Value("float64"),
                    "correct": datasets.Value("int64"),
                    "targets": datasets.Value("int64"),
                    "bytes": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, **columns: Sequence[float]) -> dict[str, float]:
        """Nats per target and their exponential, bits per byte, fraction of correct predictions."""
        nats, targets = math.fsum(columns["nats"]), sum(columns["targets"])
        loss = nats / targets
        return {
            "loss": loss,
            # the exponential of more than this overflows a float
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_byte": nats / math.log(2) / sum(columns["bytes"]),
            "accuracy": sum(columns["correct"]) / targets,
        }
