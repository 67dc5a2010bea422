"""How long a run takes and what it costs, from measured throughput.

`throughput.json` holds what benchmarks/results measured on one GPU: tokens a second of a model of
some size. In between, and for other models and GPUs, the rate of floating point operations carries
over: that of the nearest sizes on the same GPU, else the same share of the peak (MFU). Nothing is
known of CPUs, nor of the time that several GPUs lose to each other.
"""

import json
import math
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypedDict

from flame_accel.models import device_peak_flops

TABLE = Path(__file__).with_name("throughput.json")
SIMILAR_SIZES = 8
"""Factor up to which a rate carries over to other sizes."""
GPU_MEMORY_GIB = {
    "NVIDIA A100-PCIE-40GB": 39.4,
    "NVIDIA A100 80GB PCIe": 79.2,
    "NVIDIA A100-SXM4-40GB": 39.4,
    "NVIDIA A100-SXM4-80GB": 79.2,
    "NVIDIA A10": 22.5,
    "NVIDIA A30": 23.6,
    "NVIDIA A40": 44.4,
    "NVIDIA RTX A6000": 47.4,
    "NVIDIA GeForce RTX 3090": 23.6,
    "NVIDIA GeForce RTX 4090": 23.6,
    "NVIDIA L4": 22.0,
    "NVIDIA L40S": 44.4,
    "NVIDIA H100 PCIe": 79.2,
    "NVIDIA H100 80GB HBM3": 79.2,
    "NVIDIA H200": 139.8,
    "NVIDIA B200": 178.0,
}
"""What PyTorch reports as the memory of a GPU, by its name; a machine that has one is asked."""


class Measurement(TypedDict):
    """Training throughput on one GPU."""

    gpu: str
    model: str
    """Model type."""
    size: str
    tokens: int
    """Of a step."""
    tokens_per_second: int
    flops_per_token: float
    """Forward and backward, of the model with the head of that vocabulary."""
    source: str
    """File of the repository that has the figure."""


class Speed(NamedTuple):
    """Expected throughput of one device."""

    tokens_per_second: float
    basis: str
    """What it was derived from, in words."""


def load_measurements() -> list[Measurement]:
    """The table that is part of the package."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def measured_gpus() -> list[str]:
    """Names of the GPUs in the table."""
    return sorted({row["gpu"] for row in load_measurements()})


def estimate_speed(gpu: str, model_type: str, flops_per_token: float) -> Speed | None:
    """Throughput of one GPU; None if nothing is known of it, or of models of about that size.

    Args:
        gpu: As `torch.cuda.get_device_name` gives it.
        model_type: Of the model.
        flops_per_token: Forward and backward.
    """
    rows = [row for row in load_measurements() if _is_similar(row, flops_per_token)]
    here = [row for row in rows if row["gpu"] == gpu]
    for candidates, whose in (
        ([row for row in here if row["model"] == model_type], f"{model_type} on this GPU"),
        (here, "other models on this GPU"),
    ):
        if candidates:
            rate = _interpolate_flop_rate(candidates, flops_per_token)
            sizes = ", ".join(sorted({row["size"] for row in candidates}))
            return Speed(rate / flops_per_token, f"measured: {whose}, {sizes}")
    peak = device_peak_flops(gpu)
    if peak is None or not rows:
        return None
    same = [row for row in rows if row["model"] == model_type] or rows
    shares = [_flop_rate(row) / (device_peak_flops(row["gpu"]) or math.inf) for row in same]
    mfu = median(shares)
    whose = f"{model_type} has" if same is not rows else "others have"
    return Speed(mfu * peak / flops_per_token, f"as {mfu:.0%} of the peak, which {whose} elsewhere")


def _is_similar(row: Measurement, flops_per_token: float) -> bool:
    """Small models wait for the host, large ones for memory."""
    return 1 / SIMILAR_SIZES <= flops_per_token / row["flops_per_token"] <= SIMILAR_SIZES


def _flop_rate(row: Measurement) -> float:
    return row["tokens_per_second"] * row["flops_per_token"]


def _interpolate_flop_rate(rows: list[Measurement], flops_per_token: float) -> float:
    """Between the medians of sizes, over the logarithm of the operations per token."""
    rates: dict[float, list[float]] = {}
    for row in rows:
        rates.setdefault(round(math.log(row["flops_per_token"]), 1), []).append(_flop_rate(row))
    points = sorted((size, median(of_size)) for size, of_size in rates.items())
    wanted = math.log(flops_per_token)
    below = max((p for p in points if p[0] <= wanted), default=points[0])
    above = min((p for p in points if p[0] >= wanted), default=points[-1])
    if below[0] == above[0]:
        return below[1]
    share = (wanted - below[0]) / (above[0] - below[0])
    return below[1] + share * (above[1] - below[1])
