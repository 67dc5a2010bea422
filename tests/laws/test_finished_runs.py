"""A finished run is kept whatever it is started with, and goes on only to more steps."""

from pathlib import Path

import pytest

from flame_accel.config import UserError
from flame_accel.files import describe_files
from tests.helpers.runs import WITHOUT_SAMPLE, read_losses


@pytest.fixture
def finished(train_here, flags, tmp_path) -> Path:
    """The folder of a run of 4 steps."""
    train_here(flags(**WITHOUT_SAMPLE, **{"training.steps": 4}))
    return tmp_path / "run"


def test_a_finished_run_keeps_every_byte_whatever_it_is_started_with(train_here, flags, finished):
    before = describe_files(finished)
    starts = ((4, 0.5, -1), (4, 3e-4, -1), (3, 0.5, -1), (4, 0.5, 4), (3, 0.5, 4))
    for steps, lr, load_step in starts:
        options = {"training.steps": steps, "optimizer.lr": lr, "checkpoint.load_step": load_step}
        train_here(flags(**WITHOUT_SAMPLE, **options))
        assert describe_files(finished) == before
    train_here(flags(**WITHOUT_SAMPLE, **{"training.steps": 6}))
    assert list(read_losses(finished)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--checkpoint.no_enable_checkpoint"], "checkpoints are off"),
        (["--checkpoint.folder=elsewhere"], "no checkpoint in checkpoint.folder = elsewhere"),
    ],
)
def test_a_finished_run_is_not_replaced_by_a_start_that_resumes_nothing(
    train_here, flags, finished, extra, message
):
    before = describe_files(finished)
    with pytest.raises(UserError, match=message) as raised:
        train_here([*flags(**WITHOUT_SAMPLE, **{"training.steps": 6}), *extra])
    refusal = str(raised.value)
    assert "finished after step 4" in refusal and str(finished) in refusal
    assert describe_files(finished) == before
