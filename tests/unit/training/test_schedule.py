"""The learning rate at landmarks computed by hand, and what holds for every schedule."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame_accel.config import OptimizerConfig, TrainingConfig
from flame_accel.training import describe_long_warmup, is_due, learning_rate
from flame_accel.training.schedule import num_decay_steps
from tests.helpers.runs import SHORT_RUN, read_records


def rates(steps: int, warmup_steps: int, **options) -> list[float]:
    config = OptimizerConfig(lr=1.0, **options)
    return [
        learning_rate(step, config, total_steps=steps, warmup_steps=warmup_steps)
        for step in range(steps)
    ]


@pytest.mark.covers_option("optimizer.decay_ratio")
def test_wsd_warms_up_stays_and_falls_to_the_floor():
    values = rates(10, 4, scheduler="wsd", decay_ratio=0.4, min_lr_ratio=0.2)
    assert values == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_linear_falls_from_the_end_of_the_warm_up():
    values = rates(6, 2, scheduler="linear", min_lr_ratio=0.0)
    assert values == pytest.approx([0.5, 1, 0.75, 0.5, 0.25, 0])


def test_cosine_is_half_way_at_half_time():
    values = rates(6, 2, scheduler="cosine", min_lr_ratio=0.1)
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    assert values == pytest.approx([0.5, 1, quarter, 0.55, 0.1 + 0.9 - quarter + 0.1, 0.1])


@pytest.mark.covers_option("optimizer.decay_type")
def test_sqrt_falls_fastest_at_first():
    values = rates(8, 0, scheduler="wsd", decay_ratio=0.5, decay_type="sqrt", min_lr_ratio=0.0)
    assert values == pytest.approx([1, 1, 1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0])


shapes = st.one_of(
    st.fixed_dictionaries({"scheduler": st.sampled_from(["cosine", "linear"])}),
    st.fixed_dictionaries(
        {
            "scheduler": st.just("wsd"),
            "decay_type": st.sampled_from(["linear", "cosine", "sqrt"]),
            "decay_ratio": st.floats(0.01, 0.5),
        }
    ),
)


@given(shapes, st.integers(2, 300), st.floats(0, 1), st.data())
def test_every_schedule_rises_then_falls_and_ends_at_exactly_the_floor(shape, steps, floor, data):
    warmup_steps = data.draw(st.integers(0, steps // 2))
    values = rates(steps, warmup_steps, min_lr_ratio=floor, **shape)
    assert all(a <= b for a, b in pairwise(values[:warmup_steps]))
    rest = values[max(warmup_steps - 1, 0) :]
    assert all(a >= b for a, b in pairwise(rest))
    assert all(0 <= value <= 1 for value in values)
    # a decay of no step leaves no step at the floor
    if shape["scheduler"] != "wsd" or round(shape["decay_ratio"] * steps) > 0:
        assert values[-1] == floor
        config = OptimizerConfig(lr=1.0, min_lr_ratio=floor, **shape)
        beyond = learning_rate(steps + 5, config, total_steps=steps, warmup_steps=warmup_steps)
        assert beyond == floor


@pytest.mark.covers_option(
    "optimizer.lr", "optimizer.scheduler", "optimizer.min_lr_ratio", "training.warmup_steps"
)
def test_the_learning_rate_follows_its_options(train_here, flags, tmp_path):
    rate: dict[str, Any] = {
        "optimizer.lr": 0.01,
        "optimizer.scheduler": "cosine",
        "optimizer.min_lr_ratio": 0.5,
        "training.warmup_steps": 3,
        "training.steps": 7,
    }
    train_here(flags(**SHORT_RUN | rate))
    warm_up = [0.01 * step / 3 for step in (1, 2, 3)]
    decay = [0.01 * (0.5 + 0.5 * (1 + math.cos(math.pi * x / 4)) / 2) for x in (1, 2, 3, 4)]
    rates = [record["optimizer/lr"] for record in read_records(tmp_path / "run")]
    assert rates == pytest.approx(warm_up + decay)


def test_work_is_due_at_its_interval_and_after_the_last_step():
    assert [step for step in range(1, 11) if is_due(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(1, 11) if is_due(step, 0, 10)] == [10]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"scheduler": "wsd", "decay_ratio": 0.25}, 5), ({"scheduler": "cosine"}, 17)],
)
def test_wsd_decays_in_its_tail_and_the_others_after_the_warm_up(options, expected):
    assert num_decay_steps(OptimizerConfig(**options), total_steps=20, warmup_steps=3) == expected


@pytest.mark.parametrize(("steps", "long"), [(200, False), (199, True), (100, True)])
def test_a_warm_up_of_more_than_half_of_the_steps_is_named(steps: int, long: bool) -> None:
    said = describe_long_warmup(TrainingConfig(steps=steps, warmup_steps=100))
    assert (said is not None) == long
    assert said is None or f"100 of {steps} steps" in said
    assert said is None or f"--training.warmup_steps {steps // 5}" in said
