"""How a model was trained: options and devices from which step on, and how long it took."""

import re

import pytest

from flame_accel.hub.card_training_tables import format_duration
from tests.helpers.model_facts import START, build_facts, rows, write_body


def test_changes_of_options_are_told_without_paths():
    changed = [
        {"option": "optimizer.lr", "before": 0.5, "after": 0.25},
        {"option": "training.dataset", "before": "/home/me/a", "after": "/mnt/a"},
        {"option": "metrics.log_freq", "before": 1, "after": 2},
        {"option": "of.another_version", "before": "/x", "after": 2},
    ]
    second = {**START, "step": 4, "processes": 2, "changed_options": changed}
    body = write_body(build_facts(starts=[START, second]))
    assert re.findall(r"^\* from step.*$", body, re.M) == [
        "* from step 5: `optimizer.lr` 0.5 → 0.25"
    ]
    devices = [value for name, value in rows(body) if name == "devices"]
    assert devices[1] == "from step 5: 2 x A GPU, FSDP, bf16 mixed precision"
    # 4 steps on 8 devices and 4 on 2, of 2 seconds
    assert dict(rows(body))["device hours"] == f"{(4 * 8 + 4 * 2) * 2 / 3600:.4g}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5194, "0.519 s"), (59.4, "59.4 s"), (61, "1 min 1 s"), (3_725_000, "1,034 h 43 min")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
