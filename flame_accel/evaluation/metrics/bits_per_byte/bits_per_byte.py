"""Bits per byte of text, as a module of the `evaluate` library."""

import math

import datasets
import evaluate


class BitsPerByte(evaluate.Metric):
    """Negative log-likelihood of a text in bits, divided by its bytes: any tokenizer compares."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Bits per byte of text in UTF-8",
            citation="",
            inputs_description="nats of the targets of each row, and bytes of all in one of them",
            features=datasets.Features(
                {"nats": datasets.Value("float64"), "bytes": datasets.Value("int64")}
            ),
        )

    def _compute(self, nats: list[float], **columns: list[int]) -> dict[str, float]:
        return {"bits_per_byte": math.fsum(nats) / math.log(2) / sum(columns["bytes"])}
