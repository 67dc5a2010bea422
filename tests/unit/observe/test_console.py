"""The console: fields in order, colours only on a terminal, one line per record in a file."""

import errno
import io
import re

import pytest

from flame_accel.observe.console import (
    add_log_file_with_earlier_lines,
    format_record,
    format_seconds,
    get_logger,
    setup_console_logging,
)
from tests.helpers.faulty_files import faulty_files
from tests.helpers.runs import ROOT, run_python


def test_a_line_has_the_fields_in_order_and_the_time_left():
    record = {"optimizer/lr": 1e-3, "train/loss": 2.5, "step": 40}
    line = format_record(record, 160, 7200.0)
    assert line == "step  40/160  25%  loss 2.5000  lr 1.000e-03  ETA 2:00:00"
    assert "ETA" not in format_record({**record, "step": 160}, 160, 2.0)
    assert format_seconds(59.6) == "0:01:00"


COLOR = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.covers_option("metrics.disable_color_printing")
@pytest.mark.parametrize(
    ("disabled", "environment", "colored"),
    [(False, {}, True), (True, {}, False), (False, {"NO_COLOR": "1"}, False)],
)
def test_colors_are_of_a_terminal_and_can_be_switched_off(
    train_here, flags, tmp_path, monkeypatch, disabled, environment, colored
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    train_here(
        flags(
            **{
                "metrics.disable_color_printing": disabled,
                "training.steps": 2,
                "evaluation.sample_tokens": 0,
                "checkpoint.enable_checkpoint": False,
            }
        )
    )
    shown = terminal.getvalue()
    assert "2/2 [" in shown, "there is no progress bar"
    assert bool(COLOR.search(shown)) == colored
    assert ("\x1b[36mstep 2/2 100%\x1b[0m  loss" in shown) == colored
    assert ("\x1b[36mdevices\x1b[0m: 1 x cpu" in shown) == colored
    log = (tmp_path / "run/log.txt").read_text()
    assert "step 2/2 100%  loss" in log and "\x1b" not in log


def test_a_log_file_has_one_line_per_record_and_no_control_characters(flags, tmp_path):
    done = run_python([str(ROOT / "train.py"), *flags()], ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert (
        sum(line.startswith("step ") and "loss" in line for line in done.stdout.splitlines()) == 8
    )
    assert not set("\r\x1b") & set(done.stdout + done.stderr)
    assert "Warning" not in done.stderr, done.stderr


@pytest.fixture
def console_log():
    setup_console_logging(main_process=True)
    yield get_logger()
    for handler in list(get_logger().handlers):
        get_logger().removeHandler(handler)
        handler.close()


def test_a_log_file_that_cannot_be_written_is_said_once_and_ends_nothing(
    tmp_path, capsys, console_log
):
    full: list[bool] = []
    with faulty_files(tmp_path, lambda _, text: bool(full), error=errno.ENOSPC):
        add_log_file_with_earlier_lines(tmp_path / "log.txt")
        console_log.info("before")
        full.append(True)
        console_log.info("lost to the file")
        console_log.info("this one too")
        full.clear()
        console_log.info("after")
    printed = capsys.readouterr().out
    assert printed.count("log.txt cannot be written: No space left on device") == 1
    assert [word in printed for word in ("before", "lost", "too", "after")] == [True] * 4
    text = (tmp_path / "log.txt").read_text()
    assert "before" in text and "after" in text


def test_a_log_file_that_cannot_be_opened_is_said_once(tmp_path, capsys, console_log):
    with faulty_files(tmp_path, lambda _, text: text.startswith("open"), error=errno.EIO):
        add_log_file_with_earlier_lines(tmp_path / "log.txt")
        console_log.info("one")
    console_log.info("two")
    assert capsys.readouterr().out.count("cannot be written: Input/output error") == 1
    assert "two" in (tmp_path / "log.txt").read_text()
