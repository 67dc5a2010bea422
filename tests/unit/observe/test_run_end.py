"""ended.json: a run that has finished, was stopped or failed says so; a damaged record does not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator

from flame_accel.config import Config
from flame_accel.observe.run_end import read_finished_step, record_how_block_ends
from flame_accel.observe.run_folder import write_config_environment_and_clear_ended
from flame_accel.stop_signals import StoppedBySignal


def test_a_run_has_finished_from_its_end_to_its_next_start(
    tmp_path: Path, configured: Callable[..., Config]
) -> None:
    assert read_finished_step(tmp_path) is None
    with record_how_block_ends(Accelerator(cpu=True), tmp_path, lambda: 8):
        pass
    assert read_finished_step(tmp_path) == 8
    write_config_environment_and_clear_ended(tmp_path, configured(), {})
    assert read_finished_step(tmp_path) is None


@pytest.mark.parametrize(
    ("error", "reason", "what"),
    [
        (StoppedBySignal("SIGUSR1", 0), "signal", "SIGUSR1"),
        (ValueError("no space at hf_" + "a" * 34), "error", "ValueError: no space at [secret]"),
        (KeyboardInterrupt(), "error", "KeyboardInterrupt: "),
    ],
)
def test_a_run_that_is_stopped_says_why(
    tmp_path: Path, error: BaseException, reason: str, what: str
) -> None:
    with (
        pytest.raises(type(error)),
        record_how_block_ends(Accelerator(cpu=True), tmp_path, lambda: 3),
    ):
        raise error
    ended = json.loads((tmp_path / "ended.json").read_text())
    assert (ended["reason"], ended["step"], ended["what"]) == (reason, 3, what)
    assert read_finished_step(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"reason": "fini',
        '{"step": 3}',
        '{"reason": "finished"}',
        '{"reason": "finished", "step": 1e999}',
    ],
)
def test_an_end_that_cannot_be_read_is_none_and_is_said(
    tmp_path: Path, content: str, log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ended.json").write_text(content)
    assert read_finished_step(tmp_path) is None
    assert "the run continues as if it had been killed" in log.text
