"""Perplexity, as a module of the `evaluate` library."""

import math

import datasets
import evaluate

LARGEST_LOSS = 700.0
"""The exponential of much more overflows a float."""


class Perplexity(evaluate.Metric):
    """Exponential of the loss in nats per target; infinite where a float cannot hold it."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Exponential of the loss in nats per target",
            citation="",
            inputs_description="nats of the targets of each row, and their number",
            features=datasets.Features(
                {"nats": datasets.Value("float64"), "targets": datasets.Value("int64")}
            ),
        )

    def _compute(self, nats: list[float], targets: list[int]) -> dict[str, float]:
        loss = math.fsum(nats) / sum(targets)
        return {"perplexity": math.exp(loss) if loss < LARGEST_LOSS else math.inf}
