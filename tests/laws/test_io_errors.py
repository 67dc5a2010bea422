"""Whatever call on a file fails, a run goes on or ends with a sentence, and can be continued.

Every other command ends with a sentence, and with exit code 1.
Here a draw of Python's own calls; every system call, by whatever code, in tests/torture.
"""

import errno
import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors import SafetensorError

from flame_accel.__main__ import COMMANDS, main
from flame_accel.checkpoint import CheckpointFolder
from flame_accel.config import UserError
from flame_accel.config.errors import explain_io_errors
from tests.helpers.checkpoints import equal_tensors, read_weights, undo_checkpoint
from tests.helpers.faulty_files import faulty_files
from tests.helpers.runs import WITHOUT_SAMPLE

OPTIONS = {
    **WITHOUT_SAMPLE,
    "training.steps": 7,
    "checkpoint.interval": 1,
    "checkpoint.keep_latest_k": 2,
    # a thread beside training would change the order of the calls; it makes the same ones
    "checkpoint.async_mode": "disabled",
}
"""From step 4 on: three saves, the last one included, each with a prune, and the export."""


class Fault(NamedTuple):
    """Which calls fail, and how."""

    first: int
    """Number of the first call that fails."""
    error: int
    stays: bool
    """Whether all later ones fail as well, as on a disk that is full; else only this one."""

    def fails(self, number: int, call: str) -> bool:
        return number >= self.first if self.stays else number == self.first


class Trial:
    """A run that stands at step 4 and is continued again and again, each time with another fault.

    Args:
        train: Runs the training.
        argv: Its options.
        run: The run folder.
    """

    def __init__(self, train: Callable[[list[str]], None], argv: list[str], run: Path) -> None:
        self.train, self.argv, self.run = train, argv, run
        self.snapshot = run.with_name("snapshot")
        shutil.copytree(run, self.snapshot)
        with faulty_files(run, lambda *_: False, error=0) as faults:
            train(argv)
        self.calls = faults.calls
        self.weights = read_weights(run / "hf")

    def outcome(self, fault: Fault, *, continue_after: bool) -> str:
        """How the run ended; anything but an end or a sentence is raised."""
        shutil.rmtree(self.run)
        shutil.copytree(self.snapshot, self.run)
        with faulty_files(self.run, fault.fails, error=fault.error) as faults:
            try:
                # as a process of a run does
                with explain_io_errors():
                    self.train(self.argv)
                outcome = "finished"
            except UserError as error:
                outcome = f"ended with exit code {error.exit_code}"
                assert os.strerror(fault.error) in str(error), error
        assert faults.failed
        folder = CheckpointFolder(self.run / "checkpoint", keep_latest_k=0)
        newest = folder.find_newest_intact_checkpoint()
        assert newest is not None
        if outcome == "finished":
            assert equal_tensors(read_weights(self.run / "hf"), self.weights)
        if continue_after:
            self.train(self.argv)
            assert equal_tensors(read_weights(self.run / "hf"), self.weights)
        return outcome


@pytest.fixture
def trial(
    train_here: Callable[[list[str]], None], flags: Callable[..., list[str]], finished: Path
) -> Iterator[Trial]:
    undo_checkpoint(finished / "checkpoint/step-8")
    shutil.rmtree(finished / "hf")
    yield Trial(train_here, flags(**OPTIONS, **{"job.dump_folder": finished}), finished)


def test_a_draw_of_calls_that_fail(trial: Trial):
    saves = [n for n, call in enumerate(trial.calls) if "step-6" in call]
    draw = [
        Fault(len(trial.calls) // 7, errno.EIO, stays=False),
        Fault(saves[len(saves) // 2], errno.ENOSPC, stays=False),
        Fault(saves[0], errno.ENOSPC, stays=True),
    ]
    for fault in draw:
        trial.outcome(fault, continue_after=fault is draw[-1])


ERRORS = {
    "full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/a"),
    "broken disk": OSError(errno.EIO, os.strerror(errno.EIO), "/data/a"),
    "no permission": PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/a"),
    "link in a circle": OSError(errno.ELOOP, os.strerror(errno.ELOOP), "/data/a"),
    "link to nowhere": FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/data/a"),
    "full disk, in Rust": SafetensorError("I/O error: No space left (os error 28)"),
}
FEWEST_ARGUMENTS = {
    "evaluate": ["a", "--tasks=b"],
    "export": ["a", "b"],
    "generate": ["a", "--prompt=x"],
    "prepare": ["--training.dataset=a", "--model.tokenizer_path=b", "--output=c"],
    "push": ["a", "owner/name"],
    "report": ["a"],
    "sweep": ["quickstart", "--models=gla"],
    "tune": ["--model.config=a"],
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_ends_with_a_sentence(
    command: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module(f"flame_accel.commands.{command}"), "run", fail)
    with pytest.raises(SystemExit) as ended:
        main([command, *FEWEST_ARGUMENTS.get(command, [])])
    message = capsys.readouterr().err
    reason = error.strerror if isinstance(error, OSError) else os.strerror(errno.ENOSPC)
    assert ended.value.code == 1
    assert reason is not None and reason in message and len(message.splitlines()) <= 4


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_command_whose_calls_fail_ends_with_a_sentence(
    command: str, finished: Path, capsys: pytest.CaptureFixture[str]
):
    written = {"report": finished / "report.html", "export": finished / "again"}[command]
    words = [command, str(finished), *([str(written)] if command == "export" else [])]
    written.unlink(missing_ok=True)
    with faulty_files(finished, lambda *_: False, error=0) as faults:
        main(words)
    num_failed = 0
    # of an export every seventh, to be quick
    for number in range(0, len(faults.calls), 7 if command == "export" else 1):
        shutil.rmtree(written) if written.is_dir() else written.unlink(missing_ok=True)
        fault = Fault(number, errno.EIO, stays=False)
        with faulty_files(finished, fault.fails, error=fault.error) as faulty:
            try:
                main(words)
                assert written.exists(), faulty.failed
            except SystemExit as ended:
                num_failed += 1
                assert ended.code == 1
                assert os.strerror(errno.EIO) in capsys.readouterr().err, faulty.failed
    assert num_failed
