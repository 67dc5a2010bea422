"""The best checkpoint by a metric is saved, kept, linked and exported, also after a restart."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from flame_accel.observe import MetricLogger
from flame_accel.observe.evaluations_file import read_evaluations
from tests.helpers.runs import SHORT_RUN, read_records

METRIC = '''
from pathlib import Path

import datasets
import evaluate


class Scripted(evaluate.Metric):
    """The next line of a file."""

    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({{"targets": datasets.Value("int64")}}),
        )

    def _compute(self, targets):
        values = Path("{values}").read_text().split()
        Path("{values}").write_text(" ".join(values[1:]))
        return {{"scripted": float(values[0])}}
'''


@pytest.fixture
def scripted(
    flags: Callable[..., list[str]], corpus: Path, tmp_path: Path
) -> Callable[..., list[str]]:
    """`scripted([value, ...])`: a run that keeps the best checkpoint, with these as its metric."""
    values = tmp_path / "values"
    (tmp_path / "scripted.py").write_text(METRIC.format(values=values))

    def build(following: list[float], **options: Any) -> list[str]:
        values.write_text(" ".join(map(str, following)))
        defaults = {
            **SHORT_RUN,
            "training.steps": 6,
            "evaluation.dataset": corpus,
            "evaluation.interval": 1,
            "evaluation.max_tokens": 64,
            "evaluation.metrics": tmp_path / "scripted.py",
            "checkpoint.enable_checkpoint": True,
            "checkpoint.interval": 99,
            "checkpoint.keep_latest_k": 1,
            "checkpoint.keep_best": "eval/scripted",
            "checkpoint.best_direction": "min",
        }
        return flags(**{**defaults, **options})

    return build


def checkpoints(run: Path) -> tuple[list[str], str]:
    """The names of the checkpoints, and that of the best one."""
    folder = run / "checkpoint"
    return sorted(path.name for path in folder.glob("step-*")), os.readlink(folder / "best")


@pytest.mark.covers_option(
    "checkpoint.keep_best", "checkpoint.best_direction", "checkpoint.export_best"
)
def test_the_best_checkpoint_survives_a_crash_and_what_is_exported_is_its_model(
    scripted, train_here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, write = tmp_path / "run", MetricLogger.log_and_write_record

    def crash_at_5(self: MetricLogger, record: dict[str, float], **options: Any) -> None:
        if record["step"] == 5:
            raise KeyboardInterrupt
        write(self, record, **options)

    monkeypatch.setattr(MetricLogger, "log_and_write_record", crash_at_5)
    with pytest.raises(KeyboardInterrupt):
        train_here(scripted([5, 3, 4, 1, 2]))
    monkeypatch.undo()
    assert checkpoints(run) == (["step-4"], "step-4")
    # step 5 once more, and then worse than step 4, which this start has not evaluated
    train_here(scripted([2, 3], **{"checkpoint.export_best": True}))
    assert checkpoints(run) == (["step-4", "step-6"], "step-4")
    assert [record["eval/scripted"] for record in read_records(run)] == [5, 3, 4, 1, 2, 3]
    # the evaluation of step 5, of which there is no checkpoint, was replaced
    sets = [each.step for each in read_evaluations(run) if each.name == "validation"]
    lines = (run / "evaluations.jsonl").read_text().count('"step": 5,')
    assert (sets, lines) == ([1, 2, 3, 4, 5, 6], 1)
    state = json.loads((run / "checkpoint/step-6/state.json").read_text())
    assert state["best"] == {"step": 4, "metric": "eval/scripted", "value": 1}
    best, last, exported = (
        load_file(run / folder / "model.safetensors")
        for folder in ("checkpoint/best", "checkpoint/step-6", "hf")
    )
    assert all(exported[name].equal(best[name]) for name in best)
    assert not all(exported[name].equal(last[name]) for name in last)
    assert "| updates | 4 of 6 |" in (run / "hf/README.md").read_text()


def test_a_run_goes_back_behind_its_best_checkpoint(scripted, train_here, tmp_path: Path):
    run = tmp_path / "run"
    train_here(scripted([5, 4, 3, 2, 9, 9], **{"checkpoint.keep_latest_k": 0}))
    assert checkpoints(run) == ([f"step-{n}" for n in (1, 2, 3, 4, 6)], "step-4")
    train_here(
        scripted([8, 7, 6, 4.5], **{"checkpoint.keep_latest_k": 0, "checkpoint.load_step": 2})
    )
    # steps 3 and 4 are set aside; that of step 2 has the lowest value that is left
    assert os.readlink(run / "checkpoint/best") == "step-2"


def test_a_model_starts_from_the_link_to_the_best_checkpoint(
    scripted, flags, train_here, tmp_path: Path
):
    train_here(scripted([2, 1, 3], **{"training.steps": 3}))
    start = {"checkpoint.initial_load_path": tmp_path / "run/checkpoint/best"}
    train_here(flags(**{**SHORT_RUN, **start, "job.dump_folder": tmp_path / "next"}))
    assert (tmp_path / "next/hf/model.safetensors").is_file()
