"""A save that fails costs nothing but itself, on all ranks alike."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.checkpoint import FailedSaveError, FailedSaves
from flame_accel.checkpoint.failed_saves import check_free_space
from flame_accel.config import UserError
from tests.helpers.checkpoints import list_checkpoints
from tests.helpers.faulty_files import faulty_files
from tests.helpers.runs import ROOT, WITHOUT_SAMPLE, launch, read_log, read_records

SAVES_OFTEN = {**WITHOUT_SAMPLE, "checkpoint.interval": 2, "checkpoint.keep_latest_k": 2}
PARTS = {
    "the folder": "mkdir checkpoint/step-4.tmp",
    "weights": "write checkpoint/step-4.tmp-writing/model.safetensors",
    "optimizer": "write checkpoint/step-4.tmp-writing/optimizer",
    "random states": "rename checkpoint/step-4.tmp-writing/.tmp-",
    "the manifest": "manifest.json",
    "the fsync of weights": "fsync checkpoint/step-4.tmp-writing/model.safetensors",
    "the last rename": "rename checkpoint/step-4.tmp-writing",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_save_that_fails_is_logged_leaves_nothing_and_the_next_one_is_made(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    tmp_path: Path,
    part: str,
):
    run = tmp_path / "run"
    text = PARTS[part]
    with faulty_files(
        run, lambda _, call: text in call and "step-4" in call, error=errno.ENOSPC
    ) as faults:
        train_here(flags(**SAVES_OFTEN))
    assert faults.failed
    assert list_checkpoints(run) == ["step-6", "step-8"]
    assert sorted(path.name for path in (run / "checkpoint").iterdir()) == ["step-6", "step-8"]
    log = read_log(run)
    assert f"{run / 'checkpoint/step-4'}: could not be saved: No space left on device" in log
    assert "1 of at most 3 failed saves in a row" in log
    assert read_records(run)[-1]["step"] == 8 and (run / "hf/model.safetensors").is_file()


@pytest.mark.covers_option("checkpoint.max_failures")
# in the background a failure is known at the next save
@pytest.mark.parametrize(("mode", "ends_at"), [("disabled", 6), ("async", 8)])
def test_so_many_failed_saves_in_a_row_end_the_run_and_it_continues_from_what_it_has(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    tmp_path: Path,
    mode: str,
    ends_at: int,
):
    run = tmp_path / "run"
    argv = flags(
        **SAVES_OFTEN,
        **{"checkpoint.max_failures": 2, "checkpoint.async_mode": mode, "training.steps": 10},
    )
    with (
        faulty_files(
            run,
            lambda _, call: call.startswith("mkdir checkpoint/step-") and "step-2" not in call,
            error=errno.EIO,
        ),
        pytest.raises(FailedSaveError, match=r"step-6: .*after 2 failed saves in a row") as failure,
    ):
        train_here(argv)
    assert failure.value.exit_code == 1 and "continues from its newest" in str(failure.value)
    assert list_checkpoints(run) == ["step-2"] and read_records(run)[-1]["step"] == ends_at
    train_here(argv)
    assert list_checkpoints(run) == ["step-10", "step-8"]


def test_the_last_save_is_tried_however_many_have_failed(
    train_here: Callable[[list[str]], None], flags: Callable[..., list[str]], tmp_path: Path
):
    run, argv = (
        tmp_path / "run",
        flags(**SAVES_OFTEN, **{"checkpoint.max_failures": 1, "checkpoint.async_mode": "async"}),
    )
    with faulty_files(run, lambda _, call: "checkpoint/step-6" in call, error=errno.EIO) as faults:
        train_here(argv)
    assert faults.failed and list_checkpoints(run) == ["step-4", "step-8"]


def test_a_run_whose_last_save_fails_exports_and_ends_with_an_error(
    train_here: Callable[[list[str]], None], flags: Callable[..., list[str]], tmp_path: Path
):
    run, argv = tmp_path / "run", flags(**SAVES_OFTEN, **{"checkpoint.max_failures": 1})
    with (
        faulty_files(run, lambda _, call: "step-8" in call, error=errno.EIO),
        pytest.raises(FailedSaveError, match="the last checkpoint of this run could not be saved"),
    ):
        train_here(argv)
    assert list_checkpoints(run) == ["step-4", "step-6"]
    assert (run / "hf/model.safetensors").is_file()
    # it has not finished: the same command trains the last steps again
    train_here(argv)
    assert list_checkpoints(run) == ["step-6", "step-8"]


def test_an_old_checkpoint_that_cannot_be_deleted_is_no_failed_save(
    train_here: Callable[[list[str]], None], flags: Callable[..., list[str]], tmp_path: Path
):
    run = tmp_path / "run"
    with faulty_files(
        run,
        lambda _, call: call.startswith("unlink checkpoint/step-2.tmp-writing/"),
        error=errno.EIO,
    ):
        train_here(flags(**SAVES_OFTEN))
    assert "an old checkpoint stays: Input/output error" in read_log(run)
    assert {"step-6", "step-8"} <= set(list_checkpoints(run))


@pytest.mark.distributed
def test_one_ranks_failure_is_everyones_and_nobody_waits_for_it(
    flags: Callable[..., list[str]], tmp_path: Path
):
    run = tmp_path / "run"
    faults = (
        "0 step-2.tmp-writing/model.safetensors",
        "1 write checkpoint/step-4.tmp-writing/optimizer",
        "1 fsync checkpoint/step-6.tmp-writing/.tmp-",
    )
    options = {**SAVES_OFTEN, "training.batch_size": 2, "checkpoint.max_failures": 4}
    printed = launch(
        flags(**options),
        config="fsdp2",
        processes=2,
        script=ROOT / "tests/helpers/faulty_rank.py",
        FAULTS=";".join(faults),
        RUN=str(run),
    )
    assert "Traceback" not in printed
    assert list_checkpoints(run) == ["step-8"]
    log = read_log(run)
    for step, rank in ((2, 0), (4, 1), (6, 1)):
        assert f"step-{step}: could not be saved on rank {rank}: No space left on device" in log


def test_a_bug_in_a_save_is_no_full_disk(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    from flame_accel.checkpoint import snapshot

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(snapshot, "write_optimizer_shard", broken)
    with pytest.raises(KeyError, match="a bug"):
        train_here(flags(**SAVES_OFTEN))


def test_a_save_that_does_not_fit_is_not_begun(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from flame_accel.checkpoint import failed_saves

    needed: list[int] = []

    def has_no_room(folder: Path, needed_bytes: int) -> None:
        needed.append(needed_bytes)
        check_free_space(folder, needed_bytes if len(needed) > 1 else 1 << 70)

    monkeypatch.setattr("flame_accel.checkpoint.snapshot.check_free_space", has_no_room)
    assert failed_saves.check_free_space is check_free_space
    train_here(flags(**SAVES_OFTEN))
    run = tmp_path / "run"
    assert "GiB are needed, and " in read_log(run)
    assert list_checkpoints(run) == ["step-6", "step-8"]
    tensors = [*(run / "checkpoint/step-8").rglob("*.safetensors")]
    stored = sum(file.stat().st_size for file in tensors)
    # but for the headers
    assert 0.9 * stored < needed[-1] <= stored


def test_failures_count_only_in_a_row_and_keep_no_traceback(caplog: pytest.LogCaptureFixture):
    saves = FailedSaves(2)

    def save(*, fails: bool, last: bool = False) -> None:
        with saves.logged(is_last=last):
            if fails:
                raise FailedSaveError("could not be saved", where="step-1")

    logging.getLogger("flame_accel").propagate = True
    for fails in (True, False, True, False):
        save(fails=fails)
    saves.raise_if_latest_failed()
    save(fails=True)
    with pytest.raises(UserError, match="ends after 2 failed saves"):
        save(fails=True)
    save(fails=True, last=True)
    assert all(error.__traceback__ is None for error in saves._in_a_row)
    with pytest.raises(UserError, match="the last checkpoint"):
        saves.raise_if_latest_failed()
