"""The plot of the learning rate."""

import pytest

from flame_accel.diagnosis.dry_run.schedule_plot import HEIGHT, WIDTH, plot_rates, sample_steps


@pytest.mark.parametrize("total", [1, 2, 59, 60, 61, 100_000])
def test_the_first_and_the_last_step_are_shown(total: int) -> None:
    steps = sample_steps(total)
    assert (steps[0], steps[-1], len(steps)) == (0, total - 1, min(total, WIDTH))
    assert steps == sorted(set(steps))


def test_each_step_has_one_point_at_its_height() -> None:
    steps = sample_steps(60)
    rates = [(step + 1) / 60 * 1e-3 for step in steps]
    lines = list(plot_rates(steps, rates))
    plot = [line.ljust(80)[11 : 11 + WIDTH] for line in lines[:HEIGHT]]
    assert "1.00e-03" in lines[0]
    for column in zip(*plot, strict=True):
        assert column.count("*") == 1
    assert plot[0].rstrip()[-1] == "*" == plot[-1][0]


def test_a_rate_of_zero_is_a_line_at_the_bottom() -> None:
    assert list(plot_rates([0, 1], [0.0, 0.0]))[HEIGHT - 1].endswith("**")
