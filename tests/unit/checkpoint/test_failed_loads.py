"""What cannot be read is read again, and is no damage: nothing is set aside for a cable."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.checkpoint import CheckpointFolder
from flame_accel.config import UserError
from tests.helpers.checkpoints import list_checkpoints
from tests.helpers.faulty_files import faulty_files
from tests.helpers.runs import ROOT, WITHOUT_SAMPLE, file_digests, launch, read_losses

ERRORS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("error", ERRORS)
def test_whatever_read_fails_once_or_for_good_the_newest_checkpoint_is_no_other(
    finished: Path, error: int
):
    folder = CheckpointFolder(finished / "checkpoint", keep_latest_k=0)
    newest = folder.checkpoint_path(8)
    with faulty_files(finished, lambda *_: False, error=0) as faults:
        assert folder.find_newest_intact_checkpoint() == newest
    reads = faults.calls
    assert len(reads) > 20
    before = file_digests(finished)
    for number in range(0, len(reads), 5):
        with faulty_files(finished, lambda n, _, at=number: n == at, error=error) as faults:
            assert folder.find_newest_intact_checkpoint() == newest
        assert faults.failed
        name = reads[number].split()[1]
        with (
            faulty_files(finished, lambda _, call, name=name: name in call, error=error),
            pytest.raises(UserError) as failure,
        ):
            folder.find_newest_intact_checkpoint()
        assert failure.value.exit_code == 1
        assert f"cannot be read: {os.strerror(error)} ({finished / name})" in str(failure.value)
        assert "--checkpoint.load_step 4" in str(failure.value)
    assert file_digests(finished) == before


def test_a_checkpoint_on_a_bad_sector_is_left_where_it_is_until_an_older_one_is_asked_for(
    train_here: Callable[[list[str]], None], flags: Callable[..., list[str]], finished: Path
):
    options = {**WITHOUT_SAMPLE, "job.dump_folder": finished, "training.steps": 10}
    before = file_digests(finished)

    def is_bad_sector(number: int, call: str) -> bool:
        return "step-8/data.json" in call

    with faulty_files(finished, is_bad_sector, error=errno.EIO):
        with pytest.raises(UserError, match="step-8: cannot be read: Input/output error"):
            train_here(flags(**options))
        assert file_digests(finished) == before
        train_here(flags(**options, **{"checkpoint.load_step": 4}))
    assert "step-8.superseded-0" in list_checkpoints(finished)
    assert list(read_losses(finished)) == list(range(1, 11))


def test_a_file_that_cannot_be_read_as_it_is_loaded_is_read_again(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    finished: Path,
    capsys: pytest.CaptureFixture[str],
):
    name, num_reads = "checkpoint/step-8/ranks.json", 0

    def fails_as_it_is_loaded(number: int, call: str) -> bool:
        nonlocal num_reads
        num_reads += call == f"open {name}"
        # one to hash it and one to see that it is JSON
        return call == f"open {name}" and num_reads == 3

    options = {**WITHOUT_SAMPLE, "job.dump_folder": finished, "training.steps": 9}
    with faulty_files(finished, fails_as_it_is_loaded, error=errno.EIO) as faults:
        train_here(flags(**options))
    assert faults.failed
    assert f"Input/output error ({finished / name}): read again" in capsys.readouterr().out
    assert list_checkpoints(finished) == ["step-4", "step-8", "step-9"]


@pytest.mark.distributed
def test_what_one_rank_cannot_read_ends_all_of_them_and_changes_nothing(
    flags: Callable[..., list[str]], tmp_path: Path
):
    run = tmp_path / "run"
    options = {**WITHOUT_SAMPLE, "training.batch_size": 2, "training.steps": 4}
    launch(flags(**options), config="fsdp2", processes=2)
    before = file_digests(run)
    printed = launch(
        flags(**options | {"training.steps": 6}),
        config="fsdp2",
        processes=2,
        script=ROOT / "tests/helpers/faulty_rank.py",
        fails=True,
        FAULTS="1 open checkpoint/step-4/rank-1.json",
        RUN=str(run),
    )
    assert "step-4: cannot be read: JSON, No space left on device" in printed
    assert "Traceback" not in printed
    assert file_digests(run) == before


@pytest.mark.distributed
def test_a_rank_that_cannot_read_what_is_read_before_a_collective_keeps_no_other_waiting(
    tmp_path: Path,
):
    program = ROOT / "tests/helpers/rank_programs.py"
    printed = launch(
        ["failed_read_of_weights"], config="fsdp2", processes=2, script=program, RUN=str(tmp_path)
    )
    assert "Input/output error" in printed
    assert "read again" in printed
