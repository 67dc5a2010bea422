"""Time and cost from measured throughput."""

import json

import pytest

from flame_accel.diagnosis.dry_run.run_time import (
    estimate_speed,
    load_measurements,
    measured_gpus,
)
from flame_accel.models import device_peak_flops, load_model_config, train_flops_per_token
from tests.helpers.runs import ROOT


def test_the_table_is_what_was_measured() -> None:
    found = []
    for source in sorted({row["source"] for row in load_measurements()}):
        for each in json.loads((ROOT / source).read_text()):
            # such as that of a kernel that was wrong
            if "note" not in each:
                speed = each.get("ours_graphs_tok_s") or each.get("ours_tok_s")
                found.append((each["gpu"], each["model"], each["size"], each["shape"], speed))
    for row in load_measurements():
        shape, speed = f"ragged-{row['tokens']}", row["tokens_per_second"]
        assert (row["gpu"], row["model"], row["size"], shape, speed) in found, (
            "run benchmarks/shipped_throughput.py"
        )


@pytest.mark.parametrize("name", ["gla_340M", "transformer_1.3B"])
def test_the_operations_of_the_table_are_those_of_the_model(name: str) -> None:
    model, size = name.rsplit("_", 1)
    config = load_model_config(name)
    config.vocab_size = 32_000
    rows = [r for r in load_measurements() if (r["model"], r["size"]) == (model, size)]
    flops = train_flops_per_token(config, 4096)
    assert rows and all(row["flops_per_token"] == pytest.approx(flops, rel=1e-3) for row in rows)


def test_a_measured_size_has_its_figure_and_others_lie_between() -> None:
    speed = estimate_speed("NVIDIA H200", "gla", 2.088e9)
    assert speed is not None and speed.tokens_per_second == pytest.approx(169_993, rel=0.02)
    small, middle, large = (
        estimate_speed("NVIDIA H200", "gla", flops) for flops in (2.088e9, 4e9, 7.95e9)
    )
    assert small and middle and large
    assert small.tokens_per_second > middle.tokens_per_second > large.tokens_per_second
    rates = [s.tokens_per_second * f for s, f in ((small, 2.088e9), (middle, 4e9), (large, 7.95e9))]
    assert min(rates[0], rates[2]) <= rates[1] <= max(rates[0], rates[2])


def test_another_gpu_has_the_same_share_of_its_peak() -> None:
    here = estimate_speed("NVIDIA H200", "rwkv7", 2.131e9)
    there = estimate_speed("NVIDIA A100-SXM4-80GB", "rwkv7", 2.131e9)
    peaks = device_peak_flops("NVIDIA H200"), device_peak_flops("NVIDIA A100-SXM4-80GB")
    assert here and there and peaks[0] and peaks[1]
    assert there.tokens_per_second / here.tokens_per_second == pytest.approx(
        peaks[1] / peaks[0], rel=0.02
    )


def test_nothing_is_made_up() -> None:
    assert estimate_speed("A GPU OF NOBODY", "gla", 2e9) is None
    assert estimate_speed("NVIDIA H200", "gla", 6e6) is None, "a model of a million parameters"
    assert "NVIDIA H200" in measured_gpus()
