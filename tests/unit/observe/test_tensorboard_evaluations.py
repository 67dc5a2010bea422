"""TensorBoard shows the results of lm-eval by step, each once, where a run has used it."""

from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flame_accel.config import Config, to_toml
from flame_accel.observe.evaluations_file import Evaluation
from flame_accel.observe.tensorboard_evaluations import write_evaluations_to_tensorboard

PIQA = Evaluation(step=4, tokens=1, kind="lm_eval", name="piqa", metrics={"acc": 0.5})
PROBE = replace(PIQA, kind="probe", name="mqar")


def make_run(folder: Path, **metrics_options: object) -> Path:
    metrics = replace(Config().metrics, **metrics_options)
    (folder / "config.toml").write_text(to_toml(replace(Config(), metrics=metrics)))
    return folder


@pytest.mark.parametrize(
    "options", [{"enable_tensorboard": True}, {"trackers": ("trackio", "tensorboard")}], ids=str
)
def test_every_result_is_there_once_however_often_it_is_written(
    options: dict[str, object], tmp_path: Path
):
    run = make_run(tmp_path, **options)
    later = replace(PIQA, step=8, metrics={"acc": 0.75})
    write_evaluations_to_tensorboard(run, [PIQA, PROBE])
    folder = write_evaluations_to_tensorboard(run, [PIQA, PROBE, later])
    assert folder == run / Config().metrics.save_tb_folder / "lm_eval"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["scalars"] == ["piqa/acc"]
    assert [(e.step, e.value) for e in events.Scalars("piqa/acc")] == [(4, 0.5), (8, 0.75)]


def test_a_run_without_tensorboard_gets_no_folder(tmp_path: Path):
    run = make_run(tmp_path, trackers=("trackio",))
    assert write_evaluations_to_tensorboard(run, [PIQA]) is None
    assert [path.name for path in run.iterdir()] == ["config.toml"]
