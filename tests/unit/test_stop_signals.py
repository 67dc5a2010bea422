"""A signal ends a run at once before and after its loop, and after the step in hand within it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from flame_accel import stop_signals
from flame_accel.stop_signals import StoppedBySignal, StopSignals, was_launched
from tests.helpers.runs import launch_environment

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopSignals]:
    """With its handlers in this process, which no launcher started, and time that stands still."""
    for name in stop_signals.LAUNCHED_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    monkeypatch.setattr(stop_signals.time, "monotonic", lambda: 1.0)
    handlers = StopSignals()
    handlers.install_handlers()
    yield handlers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_while_packages_are_imported_a_signal_ends_the_process_without_an_exception(
    received: StopSignals, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(number)
    assert type(ended.value) is SystemExit and ended.value.code == 128 + number


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_outside_the_loop_a_signal_ends_the_process_as_a_shell_says(
    received: StopSignals, number: signal.Signals
) -> None:
    received.unwinds = True
    with pytest.raises(StoppedBySignal) as stopped:
        signal.raise_signal(number)
    assert (stopped.value.code, stopped.value.signal_name) == (128 + number, number.name)


@pytest.mark.parametrize(("saves", "exit_code"), [(True, 0), (False, 143)])
def test_in_the_loop_it_waits_and_the_exit_code_says_whether_steps_are_lost(
    received: StopSignals, saves: bool, exit_code: int
) -> None:
    with pytest.raises(StoppedBySignal) as stopped, received.deferred(saves=saves):
        signal.raise_signal(signal.SIGTERM)
        assert received.received == signal.SIGTERM
        received.stop()
    assert stopped.value.code == exit_code


def test_a_signal_after_the_last_step_lets_the_run_finish(received: StopSignals) -> None:
    with received.deferred(saves=True):
        signal.raise_signal(signal.SIGINT)
    assert received.received == signal.SIGINT


def test_a_rank_stops_for_the_signal_of_another(received: StopSignals) -> None:
    with pytest.raises(StoppedBySignal, match="0") as stopped, received.deferred(saves=True):
        received.stop()
    assert stopped.value.signal_name == "a signal on another rank"


def test_the_same_request_may_arrive_twice_and_a_second_one_ends_at_once(
    received: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    with received.deferred(saves=True):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert exits == []
        monkeypatch.setattr(stop_signals.time, "monotonic", lambda: 2.5)
        signal.raise_signal(signal.SIGTERM)
        assert exits == [143]


def test_a_hang_up_is_ignored_where_it_was(received: StopSignals) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    received.install_handlers()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_at_the_end_of_a_process_does_not_change_its_exit_code() -> None:
    program = """
import os, signal, sys
from flame_accel.stop_signals import StopSignals
class Last:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGINT):
        kill(process, number)
signals = StopSignals()
signals.install_handlers()
# torn down after the handlers
sys.last = Last()
"""
    ended = subprocess.run([sys.executable, "-c", program], env=launch_environment())
    assert ended.returncode == 0


def test_only_a_launcher_is_watched() -> None:
    assert was_launched({"ACCELERATE_MIXED_PRECISION": "no"})
    assert was_launched({"TORCHELASTIC_RUN_ID": "none"})
    assert not was_launched({"RANK": "0"})


PROGRAM = """\
import subprocess, sys, time
from flame_accel.stop_signals import StopSignals, forward_stop_signals_to_ranks

def rank():
    signals = StopSignals()
    signals.install_handlers()
    with signals.deferred(saves=True):
        print("ready", flush=True)
        while not signals.received:
            time.sleep(0.01)
        if sys.argv[2:] == ["deaf"]:
            time.sleep(60)
        print("saved", flush=True)

def launcher():
    forward_stop_signals_to_ranks(__file__)
    return subprocess.Popen([sys.executable, __file__, "rank", *sys.argv[2:]]).wait()

sys.exit(rank() if sys.argv[1] == "rank" else launcher())
"""


def launch(tmp_path, *arguments: str) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), "launcher", *arguments],
        env=launch_environment(TORCHELASTIC_RUN_ID="none"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_launcher_passes_a_signal_on_and_waits(tmp_path, number: signal.Signals) -> None:
    process = launch(tmp_path)
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 0


def test_a_rank_without_its_launcher_saves_and_ends(tmp_path) -> None:
    process = launch(tmp_path)
    process.kill()
    # the pipe ends when the rank does
    assert process.communicate(timeout=30)[0] == "saved\n"


def test_a_rank_that_ended_before_the_launcher_looked_has_the_last_word() -> None:
    program = """
import os, subprocess, sys
from flame_accel.stop_signals import forward_stop_signals_to_ranks
forward_stop_signals_to_ranks("rank.py")
rank = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)", "rank.py"])
os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
os.kill(os.getpid(), 15)
sys.exit(rank.wait())
"""
    ended = subprocess.run([sys.executable, "-c", program], env=launch_environment())
    assert ended.returncode == 7


def test_a_second_signal_kills_a_rank_that_does_not_end(tmp_path) -> None:
    process = launch(tmp_path, "deaf")
    process.terminate()
    time.sleep(stop_signals.SAME_REQUEST_SECONDS + 0.2)
    process.terminate()
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == 143
