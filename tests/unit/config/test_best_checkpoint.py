"""The metric of the best checkpoint: one that the validation gives, with a known direction."""

from pathlib import Path

import pytest

from flame_accel.config.best_checkpoint import best_is_lowest
from tests.helpers.options import parse_flags, refusal

SETS = ("--evaluation.dataset=a", "--evaluation.sets", "wiki=b", "mqar=synthetic:mqar")


@pytest.mark.parametrize(
    ("key", "lowest"),
    [
        ("eval/loss", True),
        ("eval/accuracy", False),
        ("eval/wiki/bits_per_byte", True),
        ("eval/mqar/answer_accuracy", False),
    ],
)
def test_the_lowest_loss_and_the_highest_accuracy_are_the_best(key: str, lowest: bool):
    assert best_is_lowest(parse_flags(*SETS, f"--checkpoint.keep_best={key}").checkpoint) == lowest
    for direction in ("min", "max"):
        config = parse_flags(
            *SETS, f"--checkpoint.keep_best={key}", f"--checkpoint.best_direction={direction}"
        )
        assert best_is_lowest(config.checkpoint) == (direction == "min")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("eval/losss", "Did you mean eval/loss?"),
        ("train/loss", "is no metric of the validation"),
        ("eval/answer_accuracy", "is no metric of the validation"),
        ("eval/code/loss", "is no metric of the validation"),
        ("eval/mqar/bits_per_byte", "is no metric of the validation"),
    ],
)
def test_a_metric_that_no_validation_gives_is_refused(key: str, message: str):
    assert message in refusal(*SETS, f"--checkpoint.keep_best={key}")


def test_it_needs_validation_and_checkpoints():
    assert "Name validation data" in refusal("--checkpoint.keep_best=eval/loss")
    off = refusal(*SETS, "--checkpoint.keep_best=eval/loss", "--checkpoint.no_enable_checkpoint")
    assert "checkpoints are off" in off
    assert "needs a best checkpoint" in refusal("--checkpoint.export_best")


def test_of_a_metric_of_the_user_the_direction_must_be_given(tmp_path: Path):
    (tmp_path / "mine.py").write_text("")
    flags = (*SETS, f"--evaluation.metrics=loss,{tmp_path}/mine.py", "--checkpoint.keep_best")
    assert "lowest or its highest" in refusal(*flags, "eval/wiki/mine")
    config = parse_flags(*flags, "eval/wiki/mine", "--checkpoint.best_direction=max")
    assert not best_is_lowest(config.checkpoint)
