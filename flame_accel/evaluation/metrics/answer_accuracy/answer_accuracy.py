"""Accuracy of whole answers, as a module of the `evaluate` library."""

import datasets
import evaluate


class AnswerAccuracy(evaluate.Metric):
    """Fraction of the answers, runs of targets, of which every token is predicted."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Fraction of the answers that are predicted as a whole",
            citation="",
            inputs_description="predicted answers of each row, and their number",
            features=datasets.Features(
                {"correct_answers": datasets.Value("int64"), "answers": datasets.Value("int64")}
            ),
        )

    def _compute(self, correct_answers: list[int], answers: list[int]) -> dict[str, float]:
        return {"answer_accuracy": sum(correct_answers) / sum(answers)}
