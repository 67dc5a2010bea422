"""The best checkpoint: noted when a validation finds it, and found again by a start."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from flame_accel.checkpoint import CheckpointFolder, TrainState, find_best_and_link_it, note_if_best
from flame_accel.checkpoint.train_state import BestCheckpoint
from flame_accel.config import CheckpointConfig

LOSS = CheckpointConfig(keep_best="eval/loss")
ACCURACY = CheckpointConfig(keep_best="eval/a/accuracy")


def best(step: int, metric: str = "eval/loss") -> BestCheckpoint:
    return BestCheckpoint(step=step, metric=metric, value=float(step))


@pytest.mark.parametrize(
    ("config", "values", "best_steps"),
    [
        (LOSS, [3.0, 2.0, 2.0, math.nan, 4.0, math.inf, 1.0], [1, 2, 2, 2, 2, 2, 7]),
        (ACCURACY, [0.1, 0.3, 0.3, 0.2, math.nan, 0.4], [1, 2, 2, 2, 2, 6]),
        (CheckpointConfig(), [1.0], [None]),
    ],
)
def test_only_a_better_value_makes_a_step_the_best(config, values, best_steps):
    state = TrainState()
    found = []
    for step, value in enumerate(values, 1):
        state.step = step
        note_if_best(state, {str(config.keep_best): value}, config)
        found.append(state.best and state.best["step"])
    assert found == best_steps


def test_a_value_of_another_metric_is_no_rival():
    state = TrainState(step=5, best=best(3, "eval/a/loss"))
    note_if_best(state, {"eval/loss": 99.0}, LOSS)
    assert state.best == {"step": 5, "metric": "eval/loss", "value": 99.0}


def test_a_step_without_the_metric_is_not_the_best_and_that_is_said(log):
    state = TrainState(step=5)
    note_if_best(state, {"eval/accuracy": 0.5}, LOSS)
    note_if_best(state, {}, LOSS)
    assert state.best is None
    assert log.text.count("step 5: no finite eval/loss to find the best checkpoint by") == 1


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    """Checkpoints of steps 2, 4 and 6; each knew itself as the best, and 4 is linked."""
    for step in (2, 4, 6):
        path = tmp_path / f"step-{step}"
        path.mkdir()
        (path / "state.json").write_text(json.dumps({"best": best(step)}))
    os.symlink("step-4", tmp_path / "best")
    return CheckpointFolder(tmp_path, keep_latest_k=0)


@pytest.mark.parametrize(
    ("known", "config", "expected"),
    [
        (best(6), LOSS, best(6)),
        (best(4), LOSS, best(4)),
        # its save has failed: the one before, which the link leads to
        (best(8), LOSS, best(4)),
        (None, LOSS, best(4)),
        # by another metric nothing is known
        (best(6), ACCURACY, None),
        (best(6), CheckpointConfig(), None),
    ],
)
def test_a_start_finds_the_best_checkpoint_that_there_is(folder, known, config, expected):
    found = find_best_and_link_it(folder, TrainState(step=6, best=known), config)
    assert found == expected
    assert folder.best_step == (expected and expected["step"])
    assert os.readlink(folder.path / "best") == f"step-{expected['step'] if expected else 4}"


def test_a_link_to_what_was_set_aside_is_removed(folder):
    os.rename(folder.path / "step-4", folder.path / "step-4.superseded-0")
    assert find_best_and_link_it(folder, TrainState(step=2), LOSS) is None
    assert not (folder.path / "best").is_symlink()
    shutil.rmtree(folder.path)
    assert find_best_and_link_it(folder, TrainState(), LOSS) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"best": 3}', '{"best": {"step": 4}}'])
def test_a_damaged_state_tells_nothing(folder, text: str):
    (folder.path / "step-4/state.json").write_text(text)
    assert find_best_and_link_it(folder, TrainState(), LOSS) is None
