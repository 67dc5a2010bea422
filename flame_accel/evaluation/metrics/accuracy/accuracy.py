"""Accuracy of the next token, as a module of the `evaluate` library."""

import datasets
import evaluate


class NextTokenAccuracy(evaluate.Metric):
    """Fraction of the targets to which the model gives the largest probability."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Fraction of the targets that are predicted",
            citation="",
            inputs_description="predicted targets of each row, and their number",
            features=datasets.Features(
                {"correct": datasets.Value("int64"), "targets": datasets.Value("int64")}
            ),
        )

    def _compute(self, correct: list[int], targets: list[int]) -> dict[str, float]:
        return {"accuracy": sum(correct) / sum(targets)}
