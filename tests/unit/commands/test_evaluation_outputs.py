"""Results get into the record of the right run and step, whatever happened to its folder."""

import json
import threading
import time
from pathlib import Path

import pytest

from flame_accel.checkpoint.run_lock import RunLock
from flame_accel.commands.evaluation_outputs import (
    choose_outputs,
    hold_run_lock,
    record_in_run,
)
from flame_accel.config import UserError
from flame_accel.observe.evaluations_file import Evaluation, read_evaluations

RECORD = Evaluation(step=8, tokens=2048, kind="lm_eval", name="piqa", metrics={"acc": 0.5})


def test_an_export_whose_run_went_on_has_no_known_step(finished: Path):
    (finished / "ended.json").write_text(json.dumps({"reason": "signal", "step": 9}))
    outputs = choose_outputs(str(finished / "hf"), None)
    assert outputs.run is None and "went on" in str(outputs.notice)
    outputs = choose_outputs(str(finished / "checkpoint/step-8"), None)
    assert outputs.run is not None and outputs.run.model.step == 8


def test_half_a_line_of_a_killed_run_costs_no_result(finished: Path):
    run = choose_outputs(str(finished / "hf"), None).run
    assert run is not None
    (finished / "evaluations.jsonl").write_text('{"step": 8, "tok')
    record_in_run(run, [RECORD])
    assert [each.name for each in read_evaluations(finished)] == ["piqa"]
    assert not (finished / "run.lock").exists()


def test_the_lock_of_a_run_is_waited_for_a_while(tmp_path: Path):
    lock = RunLock(tmp_path)
    lock.acquire()
    with pytest.raises(UserError, match="another run"), hold_run_lock(tmp_path, wait_seconds=0):
        pass
    timer = threading.Timer(0.3, lock.release)
    timer.start()
    begun = time.monotonic()
    with hold_run_lock(tmp_path, wait_seconds=30):
        assert time.monotonic() - begun >= 0.2
    timer.join()
