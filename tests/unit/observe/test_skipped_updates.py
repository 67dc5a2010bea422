"""skipped.jsonl: which updates were skipped, why, and what they had read."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flame_accel.observe import SkippedUpdates
from flame_accel.observe.skipped_updates import describe_reason
from flame_accel.training import StepResult

ONE_PROCESS: Any = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    is_main_process=True,
    parallelism_config=None,
)


class Batches:
    """Two lanes, each of which reads a row a step."""

    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {"first_lane": 4, "cursors": [[0, self.steps], [1, self.steps]]}


def build(folder: Path, batches: Any, step: int = 0, rewinds: int = 0) -> SkippedUpdates:
    return SkippedUpdates(
        ONE_PROCESS, folder, step=step, rewinds=rewinds, batches=batches, sigma=6.0
    )


def take_step(subject: SkippedUpdates, batches: Batches, step: int, norm: float) -> None:
    batches.steps += 1
    skipped = torch.tensor(float(norm != norm))
    result = StepResult(
        loss_sum=torch.tensor(1.0), targets=1, grad_norm=torch.tensor(norm), skipped=skipped
    )
    subject.add_step(step, result)


@pytest.fixture
def three_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of six steps of which 2, 3 and 6 were skipped."""
    monkeypatch.setattr("flame_accel.observe.skipped_updates.gather_object", lambda each: each)
    subject = build(tmp_path, batches := Batches())
    for step in range(1, 7):
        take_step(subject, batches, step, float("nan") if step in (2, 3, 6) else 1.0)
        if step in (4, 6):
            subject.log_and_write()
            subject.log_and_write()
    return tmp_path


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_each_skipped_update_is_written_once_with_what_its_lanes_read(three_skips: Path) -> None:
    records = read(three_skips)
    assert [record["step"] for record in records] == [2, 3, 6]
    assert records[0] == {
        "step": 2,
        "reason": "the norm of its gradient is nan",
        "grad_norm": "nan",
        "lanes": {"4": [[0, 1], [0, 2]], "5": [[1, 1], [1, 2]]},
    }


def test_steps_that_run_again_are_written_again(three_skips: Path) -> None:
    with (three_skips / "skipped.jsonl").open("a") as file:
        file.write('{"step": 7, "torn')
    build(three_skips, Batches(), step=3)
    assert [record["step"] for record in read(three_skips)] == [2, 3]


def test_a_rewind_is_behind_what_it_takes_back_and_before_what_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flame_accel.observe.skipped_updates.gather_object", lambda each: each)
    subject = build(tmp_path, batches := Batches())
    for step in (1, 2):
        take_step(subject, batches, step, float("nan"))
    subject.log_and_write()
    there = [[lane, 0] for lane in range(4)] + [[0, 1], [1, 1]]
    subject.write_rewind(2, "step-1", there)
    take_step(subject, batches, 2, float("nan"))
    subject.log_and_write()
    lines = [(line["step"], line.get("rewinds", 0), "reason" in line) for line in read(tmp_path)]
    assert lines == [(1, 0, True), (2, 0, True), (2, 0, False), (2, 1, True)]
    assert read(tmp_path)[2] == {
        "step": 2,
        "rewound_to": "step-1",
        "lanes": {"4": [[0, 1], [0, 2]], "5": [[1, 1], [1, 2]]},
    }
    # a restart behind the rewind, at it, and from the checkpoint
    for step, rewinds, kept in ((2, 1, 4), (1, 1, 3), (1, 0, 1)):
        build(tmp_path, Batches(), step=step, rewinds=rewinds)
        assert len(read(tmp_path)) == kept


def test_reasons() -> None:
    assert describe_reason(float("inf"), [], 6.0) == "the norm of its gradient is inf"
    assert describe_reason(1.0, [9.0, 1.0, 4.0, 2.0], 6.0) == (
        "its loss 9 is above 4, 6 standard deviations over the mean of the updates before it"
    )
    both = describe_reason(3.0, [9.0, 3.0, 4.0, 2.0], 6.0)
    assert "its loss 9 is above 4" in both and "and its gradient norm 3 is above 2" in both
