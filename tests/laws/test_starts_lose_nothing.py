"""Starts lose nothing: none begins anew in silence, goes back twice, or changes what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.checkpoint_files import MANIFEST, write_manifest
from flame_accel.config import UserError
from flame_accel.files import describe_files
from tests.helpers.checkpoints import list_checkpoints, undo_checkpoint
from tests.helpers.runs import WITHOUT_SAMPLE, launch, model_digests, read_log, read_losses

Train = Callable[[list[str]], None]
Flags = Callable[..., list[str]]


def spoil(checkpoint: Path, name: str, content: str) -> None:
    """Writes other contents, and the checksums of these into the manifest."""
    facts = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).unlink()
    (checkpoint / name).write_text(content)
    write_manifest(checkpoint, {key: facts[key] for key in ("step", "tokens")})


def remember_as_unfinished(run: Path) -> None:
    (run / "ended.json").unlink()


UNLOADABLE = {
    "a counter has another name": ("state.json", '{"step": 8, "tokens": 2048, "updates": 8}'),
    "no meters": ("ranks.json", '[{"metre": {}}]'),
    "random states of another kind": ("rank-0.json", '{"python": [3, [1, 2], null]}'),
    "no position": ("data.json", "[]"),
}


@pytest.mark.parametrize("case", UNLOADABLE)
def test_what_cannot_be_loaded_though_its_hashes_fit_is_passed_over(
    train_here: Train, flags: Flags, finished: Path, case: str
):
    expected, newest = model_digests(finished / "hf"), finished / "checkpoint/step-8"
    name, content = UNLOADABLE[case]
    spoil(newest, name, content)
    remember_as_unfinished(finished)
    train_here(flags(**WITHOUT_SAMPLE, **{"job.dump_folder": finished}))
    log = read_log(finished)
    assert f"{newest} is damaged" in log and "continuing after step 4" in log
    assert name in log or case == "random states of another kind"
    assert list_checkpoints(finished) == ["step-4", "step-8", "step-8.damaged-0"]
    assert model_digests(finished / "hf") == expected


@pytest.mark.distributed
def test_ranks_pass_over_together_what_one_of_them_cannot_load(flags: Flags, tmp_path: Path):
    run = tmp_path / "run"
    argv = flags(**WITHOUT_SAMPLE, **{"training.batch_size": 2})
    launch(argv, config="fsdp2", processes=2)
    expected = model_digests(run / "hf")
    spoil(run / "checkpoint/step-8", "rank-1.json", "[]")
    remember_as_unfinished(run)
    launch(argv, config="fsdp2", processes=2)
    assert "step-8 is damaged (rank-1.json" in read_log(run)
    assert list_checkpoints(run) == ["step-4", "step-8", "step-8.damaged-0"]
    assert model_digests(run / "hf") == expected


def test_where_nothing_can_be_loaded_the_run_ends_with_code_2_and_keeps_every_byte(
    train_here: Train, flags: Flags, finished: Path
):
    (finished / "checkpoint/step-4/state.json").write_text("{}")
    spoil(finished / "checkpoint/step-8", "ranks.json", "[{}]")
    remember_as_unfinished(finished)
    before = describe_files(finished)
    for options in ({}, {"training.steps": 12}, {"checkpoint.initial_load_path": finished / "hf"}):
        with pytest.raises(UserError, match="none of them can be used") as raised:
            train_here(flags(**WITHOUT_SAMPLE, **options, **{"job.dump_folder": finished}))
        assert raised.value.exit_code == 2
        for text in ("step-8: ranks.json", "step-4: state.json", "begin anew on purpose"):
            assert text in str(raised.value)
    assert describe_files(finished) == before


def test_a_run_that_begins_anew_keeps_the_records_of_the_one_before(
    train_here: Train, flags: Flags, finished: Path
):
    shutil.move(finished / "checkpoint", finished.parent / "moved")
    remember_as_unfinished(finished)
    names = ("metrics.jsonl", "config.toml", "environment.json", "log.txt", "report.html")
    for number in range(2):
        before = {name: (finished / name).read_bytes() for name in names}
        options = {"training.seed": number, "checkpoint.enable_checkpoint": False}
        train_here(flags(**WITHOUT_SAMPLE, **options, **{"job.dump_folder": finished}))
        remember_as_unfinished(finished)
        kept = finished / f"earlier-{number}"
        assert before == {name: (kept / name).read_bytes() for name in names}
        assert list(read_losses(finished)) == list(range(1, 9))
        assert str(kept) in read_log(finished)


def test_a_step_is_gone_back_to_once(train_here: Train, flags: Flags, finished: Path):
    own = {**WITHOUT_SAMPLE, "job.dump_folder": finished, "checkpoint.keep_latest_k": 0}
    back = flags(**own, **{"checkpoint.load_step": 4, "optimizer.lr": 0.01})
    first = (finished / "metrics.jsonl").read_bytes()
    train_here(back)
    assert list_checkpoints(finished) == ["step-4", "step-8", "step-8.superseded-0"]
    assert (finished / "earlier-0/metrics.jsonl").read_bytes() == first
    assert (finished / "earlier-0/ended.json").is_file()
    before = describe_files(finished)
    # finished, and started again by a script
    train_here(back)
    assert describe_files(finished) == before
    # interrupted after its checkpoint of step 8
    remember_as_unfinished(finished)
    train_here([*back, "--training.steps=10"])
    assert "checkpoint.load_step = 4 has acted at an earlier start" in read_log(finished)
    assert read_log(finished).count("continuing after step 4") == 1
    # another one acts, and so does the first one after it
    train_here([*back, "--training.steps=10", "--checkpoint.load_step=8"])
    assert "step-10.superseded-0" in list_checkpoints(finished)
    train_here([*back, "--training.steps=10"])
    assert read_log(finished).count("continuing after step 4") == 2


def test_a_step_that_was_gone_back_to_is_not_begun_without(
    train_here: Train, flags: Flags, finished: Path
):
    """The user named a checkpoint: without any there is nothing that the newest could be."""
    own = {**WITHOUT_SAMPLE, "job.dump_folder": finished, "checkpoint.load_step": 4}
    train_here(flags(**own))
    remember_as_unfinished(finished)
    shutil.rmtree(finished / "checkpoint")
    with pytest.raises(UserError, match="the checkpoint of step 4 cannot be loaded"):
        train_here(flags(**own))


REFUSED = {
    "another stream": {"training.seed": 7},
    "another stream, going back": {"training.seed": 7, "checkpoint.load_step": 4},
    "a step that is not there": {"checkpoint.load_step": 5},
    "another optimizer": {"optimizer.name": "Muon"},
    "another optimizer, going back": {"optimizer.name": "Muon", "checkpoint.load_step": 4},
    "no tracker": {"metrics.enable_wandb": True, "checkpoint.load_step": 4},
    "other rows": {"training.batch_size": 3},
    "another folder of checkpoints": {"checkpoint.folder": "elsewhere"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_start_that_is_refused_changes_no_byte(
    train_here: Train,
    flags: Flags,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
):
    # as where the package is not installed
    monkeypatch.setattr(
        "flame_accel.observe.trackers.enabled.is_package_installed", lambda name: name != "wandb"
    )
    remember_as_unfinished(finished)
    leftover = finished / "checkpoint/step-8.tmp-writing"
    leftover.mkdir()
    before = describe_files(finished)
    with pytest.raises(UserError):
        options = {"training.steps": 12, "optimizer.lr": 0.5, **REFUSED[case]}
        train_here(flags(**{**WITHOUT_SAMPLE, **options, "job.dump_folder": finished}))
    assert describe_files(finished) == before and leftover.exists()


def test_a_run_killed_before_its_first_checkpoint_is_begun_again(
    train_here: Train, flags: Flags, tmp_path: Path
):
    run = tmp_path / "run"
    argv = flags(**WITHOUT_SAMPLE, **{"checkpoint.interval": 100})
    train_here(argv)
    losses = read_losses(run)
    undo_checkpoint(run / "checkpoint/step-8")
    train_here(argv)
    assert read_losses(run) == losses
