"""Loss in nats per target, as a module of the `evaluate` library."""

import math

import datasets
import evaluate


class Loss(evaluate.Metric):
    """Mean negative log-likelihood of the targets."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Loss in nats per target",
            citation="",
            inputs_description="nats of the targets of each row, and their number",
            features=datasets.Features(
                {"nats": datasets.Value("float64"), "targets": datasets.Value("int64")}
            ),
        )

    def _compute(self, nats: list[float], targets: list[int]) -> dict[str, float]:
        return {"loss": math.fsum(nats) / sum(targets)}
