"""Curves: a long one keeps its spikes, what is not finite is a gap, and every x axis is exact."""

import math

import pytest

from flame_accel.observe.report.curves import extract_curve, measure_x_axes


def records_of(values: list[float], key: str = "a") -> list[dict[str, float]]:
    return [{"step": step, key: value} for step, value in enumerate(values, 1)]


def test_a_short_curve_is_what_was_recorded():
    curve = extract_curve(records_of([3.0, 2.0, 1.5]), "a", most_points=3)
    assert curve is not None
    assert (curve.steps, curve.values, curve.low, curve.last) == ([1, 2, 3], [3, 2, 1.5], None, 1.5)


@pytest.mark.parametrize("spike_at", [0, 1, 5_000, 9_998, 9_999])
@pytest.mark.parametrize("spike", [1e4, -1e4])
def test_a_thinned_curve_loses_no_spike(spike_at: int, spike: float):
    values = [1.0] * 10_000
    values[spike_at] = spike
    curve = extract_curve(records_of(values), "a", most_points=100)
    assert curve is not None and curve.low is not None and curve.high is not None
    assert len(curve.steps) == len(curve.values) == len(curve.low) == len(curve.high) <= 100
    assert spike in (max(v for v in curve.high if v), min(v for v in curve.low if v))
    assert curve.steps[0] == 1 and curve.steps[-1] == 10_000
    assert curve.steps == sorted(curve.steps)


def test_bins_are_means_of_what_is_finite():
    values = [float(n) for n in range(1000)]
    values[500] = math.nan
    curve = extract_curve(records_of(values), "a", most_points=11)
    assert curve is not None and curve.low is not None and curve.high is not None
    for mean, low, high in list(zip(curve.values, curve.low, curve.high, strict=True))[1:-1]:
        assert mean is not None and low is not None and high is not None
        # of consecutive numbers without at most one of them
        assert mean == pytest.approx((low + high) / 2, abs=0.6)
    assert curve.gaps == [501]


@pytest.mark.parametrize("most_points", [3, 100])
def test_what_is_not_finite_is_a_gap(most_points: int):
    values = [1.0, math.nan, math.inf, 2.0, math.nan]
    curve = extract_curve(records_of(values), "a", most_points=most_points)
    assert curve is not None and curve.gaps == [2, 3, 5] and math.isnan(curve.last)
    if most_points == 100:
        assert curve.values == [1, None, None, 2, None]


@pytest.mark.parametrize("values", [[], [math.nan, math.inf]], ids=str)
def test_without_a_finite_value_there_is_no_curve(values: list[float]):
    assert extract_curve(records_of(values), "a", most_points=9) is None


def test_the_x_axes_of_a_run():
    records = [
        {
            "step": step,
            "tokens": 1000 * step,
            "time/step_seconds": 0.5,
            "throughput/tokens_per_second_per_device": 2000.0,
            # 3e6 FLOPs for each token
            "throughput/tflops_per_device": 2000 * 3e6 / 1e12,
        }
        for step in (10, 20, 40)
    ]
    # an evaluation after the last step
    records.append({"step": 40, "tokens": 40_000, "eval/loss": 1.0})
    assert measure_x_axes(records) == {
        "step": [10, 20, 40],
        "tokens": [10_000, 20_000, 40_000],
        "seconds": [5, 10, 20],
        "flops": [3e10, 6e10, 12e10],
    }


def test_an_axis_that_is_not_recorded_is_empty():
    axes = measure_x_axes([{"step": 1, "train/loss": 2.0}])
    assert axes == {"step": [1], "tokens": [], "seconds": [], "flops": []}
    assert measure_x_axes([]) == {"step": [], "tokens": [], "seconds": [], "flops": []}
