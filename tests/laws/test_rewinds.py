"""Laws of rewinds: past bad data a run goes on as if it had begun there, from its checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from flame_accel.checkpoint import CheckpointFolder
from flame_accel.checkpoint_files import write_manifest
from flame_accel.config import UserError
from flame_accel.observe import MetricLogger
from tests.helpers.bad_data import bad_data
from tests.helpers.checkpoints import list_checkpoints
from tests.helpers.runs import (
    ROOT,
    WITHOUT_SAMPLE,
    launch,
    model_digests,
    read_log,
    read_losses,
)

OPTIONS = {
    **WITHOUT_SAMPLE,
    "training.steps": 10,
    "training.max_consecutive_skips": 3,
    "training.max_rewinds": 1,
    "training.skip_spike_sigma": 100,
    "training.spike_window": 4,
    "metrics.log_freq": 1,
    "checkpoint.interval": 2,
    "checkpoint.keep_latest_k": 0,
}
BAD = (6, 7, 8)
"""Steps of the data: at step 8 the run goes back to step 4, and reads what step 9 would have."""

TrainHere = Callable[[list[str]], None]
Flags = Callable[..., list[str]]


def read_skipped(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]


def place_checkpoint_with_later_data(run: Path, target: Path, rewind: dict[str, Any]) -> None:
    """Copies the checkpoint that a run went back to, with the position of the data then."""
    name = rewind["rewound_to"]
    checkpoint = target / "checkpoint" / name
    shutil.copytree(run / "checkpoint" / name, checkpoint)
    data = json.loads((checkpoint / "data.json").read_text())
    befores, afters = zip(*(rewind["lanes"][str(lane)] for lane in range(4)), strict=True)
    assert list(befores) == data["cursors"]
    data |= {"steps": rewind["step"], "cursors": list(afters)}
    (checkpoint / "data.json").write_text(json.dumps(data))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").unlink()
    facts = ("step", "tokens", "processes", "versions")
    write_manifest(checkpoint, {name: manifest[name] for name in facts})


@pytest.fixture
def rewound(train_here: TrainHere, flags: Flags, tmp_path: Path) -> Path:
    """The folder of a run that went back once."""
    with bad_data(BAD):
        train_here(flags(**OPTIONS))
    return tmp_path / "run"


@pytest.mark.covers_option("training.max_rewinds")
def test_a_rewound_run_is_one_that_starts_from_that_checkpoint_at_that_data(
    rewound: Path, train_here: TrainHere, flags: Flags, tmp_path: Path
):
    *skipped, rewind = read_skipped(rewound)
    assert [line["step"] for line in skipped] == [6, 7, 8]
    assert (rewind["step"], rewind["rewound_to"]) == (8, "step-4")
    assert "the run goes back to step 4" in read_log(rewound)
    assert "rewind 1 of at most 1" in read_log(rewound)
    assert list_checkpoints(rewound) == [
        *("step-10", "step-2", "step-4", "step-6", "step-6.superseded-0", "step-8"),
    ]
    assert json.loads((rewound / "checkpoint/step-10/state.json").read_text())["rewinds"] == 1
    assert list(read_losses(rewound / "earlier-0"))[-1] == 8

    other = tmp_path / "other"
    place_checkpoint_with_later_data(rewound, other, rewind)
    train_here(flags(**OPTIONS, **{"job.dump_folder": other}))
    losses = read_losses(rewound)
    assert list(losses) == list(range(1, 11))
    assert read_losses(other) == {step: losses[step] for step in range(5, 11)}
    assert model_digests(other / "hf") == model_digests(rewound / "hf")


def test_an_open_window_of_records_goes_back_too(
    train_here: TrainHere, flags: Flags, tmp_path: Path
):
    options = {**OPTIONS, "metrics.log_freq": 3, "training.max_consecutive_skips": 2}
    with bad_data([5, 6]):
        train_here(flags(**options))
    run, other = tmp_path / "run", tmp_path / "other"
    place_checkpoint_with_later_data(run, other, read_skipped(run)[-1])
    train_here(flags(**options, **{"job.dump_folder": other}))
    losses = read_losses(run)
    assert list(losses) == [1, 3, 6, 9, 10]
    assert read_losses(other) == {step: losses[step] for step in (6, 9, 10)}
    assert model_digests(other / "hf") == model_digests(run / "hf")


# records: steps 1 to 8, then 5 to 10
CRASHES = {"before it": 8, "after it": 9, "behind its first checkpoint": 11}


@pytest.mark.parametrize("crash", [*CRASHES, "before checkpoints are set aside"])
def test_a_run_killed_around_a_rewind_ends_with_the_same_bits(
    rewound: Path, train_here: TrainHere, flags: Flags, tmp_path: Path, crash: str
):
    killed = tmp_path / "killed"
    argv = flags(**OPTIONS, **{"job.dump_folder": killed})
    write, set_aside = MetricLogger.log_and_write_record, "delete_leftovers_and_rename_newer"
    num_records = 0

    def write_or_crash(self: MetricLogger, record: Any, **options: Any) -> None:
        nonlocal num_records
        num_records += 1
        if num_records == CRASHES.get(crash):
            raise KeyboardInterrupt
        write(self, record, **options)
        if num_records == 8 and crash not in CRASHES:
            aside = mock.patch.object(CheckpointFolder, set_aside, side_effect=KeyboardInterrupt)
            patches.append(aside)
            aside.start()

    patches: list[Any] = []
    with bad_data(BAD):
        with (
            mock.patch.object(MetricLogger, "log_and_write_record", write_or_crash),
            pytest.raises(KeyboardInterrupt),
        ):
            train_here(argv)
        for patch in patches:
            patch.stop()
        train_here(argv)
    assert read_losses(killed) == read_losses(rewound)
    assert model_digests(killed / "hf") == model_digests(rewound / "hf")
    assert (killed / "skipped.jsonl").read_text() == (rewound / "skipped.jsonl").read_text()
    states = [run / "checkpoint/step-10/state.json" for run in (killed, rewound)]
    assert states[0].read_text() == states[1].read_text()


def test_a_run_goes_back_as_often_as_it_may(train_here: TrainHere, flags: Flags, tmp_path: Path):
    run = tmp_path / "run"
    with bad_data([*BAD, 9, 10, 11]):
        with pytest.raises(UserError, match=r"has gone back 1 times \(training.max_rewinds\)"):
            train_here(flags(**OPTIONS))
        # the same data again, and further
        train_here(flags(**OPTIONS | {"training.max_rewinds": 2}))
    rewinds = [line for line in read_skipped(run) if "rewound_to" in line]
    assert [(line["step"], line["rewound_to"]) for line in rewinds] == [
        *((8, "step-4"), (7, "step-4")),
    ]
    assert json.loads((run / "checkpoint/step-10/state.json").read_text())["rewinds"] == 2


def test_without_a_checkpoint_of_before_the_run_stops_and_says_so(
    train_here: TrainHere, flags: Flags
):
    with (
        bad_data([1, 2, 3]),
        pytest.raises(UserError, match="no checkpoint up to step 0 to go back to"),
    ):
        train_here(flags(**OPTIONS))


def test_the_checkpoint_of_before_outlives_those_of_skipped_updates(
    train_here: TrainHere, flags: Flags, tmp_path: Path
):
    often = {**OPTIONS, "checkpoint.interval": 1, "checkpoint.keep_latest_k": 1}
    with bad_data(BAD):
        train_here(flags(**often))
    run = tmp_path / "run"
    assert read_skipped(run)[-1]["rewound_to"] == "step-5"
    assert list_checkpoints(run) == ["step-10", "step-7.superseded-0"]


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_ranks_go_back_together(flags: Flags, tmp_path: Path, engine: str):
    options = {**OPTIONS, "training.batch_size": 2}
    launch(
        flags(**options),
        config=engine,
        processes=2,
        script=ROOT / "tests/helpers/bad_data.py",
        BAD_STEPS=" ".join(map(str, BAD)),
        BAD_RANKS="1",
    )
    run, other = tmp_path / "run", tmp_path / "other"
    place_checkpoint_with_later_data(run, other, read_skipped(run)[-1])
    launch(flags(**options, **{"job.dump_folder": other}), config=engine, processes=2)
    losses = read_losses(run)
    assert read_losses(other) == {step: losses[step] for step in range(5, 11)}
    assert model_digests(other / "hf") == model_digests(run / "hf")
