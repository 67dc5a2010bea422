"""A start that cannot write to the run folder is refused, on all ranks."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

from flame_accel import observe
from flame_accel.accepted_start import change_run_folder_as_start_is_accepted
from flame_accel.checkpoint import TrainState
from flame_accel.config import UserError, parse
from tests.helpers.runs import ROOT, WITHOUT_SAMPLE, launch

Flags = Callable[..., list[str]]


def test_a_full_disk_ends_the_start_with_the_folder_and_what_to_do(tmp_path, monkeypatch):
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(observe, "keep_earlier_records", fail)
    monkeypatch.setattr(observe, "write_run_description_and_open_log", lambda *_, **__: 1 / 0)
    options = ["--model.config=gla_1M", "--training.dataset=python-stdlib"]
    config = parse([*options, "--model.tokenizer_path=byte", f"--job.dump_folder={tmp_path}"])
    start: Any = SimpleNamespace(load_step_acts=False)
    restored: Any = SimpleNamespace(checkpoint=None, state=TrainState())
    data: Any = None
    with pytest.raises(UserError, match="cannot be written to: No space left") as raised:
        change_run_folder_as_start_is_accepted(Accelerator(cpu=True), config, start, restored, data)
    assert raised.value.where == f"job.dump_folder = {tmp_path}" and raised.value.remedy


@pytest.mark.distributed
def test_ranks_refuse_together_a_start_that_one_of_them_cannot_describe(
    flags: Flags, tmp_path: Path
):
    printed = launch(
        flags(**WITHOUT_SAMPLE, **{"training.batch_size": 2}),
        config="ddp",
        processes=2,
        fails=True,
        script=ROOT / "tests/helpers/faulty_rank.py",
        FAULTS="0 open .tmp-",
        RUN=str(tmp_path / "run"),
    )
    assert "Traceback" not in printed
    assert printed.count("cannot be written to: No space left on device") == 2
