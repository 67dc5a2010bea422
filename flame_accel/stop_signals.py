"""Signals that ask a run to end: SIGTERM, SIGINT, SIGUSR1, a closed terminal, a lost launcher.

A cluster, a terminal or `kill` sends them. In the training loop a run saves after the step in hand
and ends well (`train`); before it nothing has to be saved, and the process ends at once; the export
after it is finished. A launcher passes the signals that it gets on to the processes of the run. No
slow imports here: the handlers are installed before anything else is done.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import psutil

SAME_REQUEST_SECONDS = 1.0
"""A terminal signals every process, and the launcher passes it on: both are one request."""
KILL_AFTER_SECONDS = 2.0
"""A process that is deaf, in a collective that hangs perhaps, is killed after a second signal."""
CHECK_PARENT_SECONDS = 0.5
LAUNCHED_VARIABLES = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Set by `accelerate launch` and `torchrun`: the parent is a launcher, without which a run ends."""


class StoppedBySignal(SystemExit):
    """A signal ended the run.

    Args:
        signal_name: Such as SIGTERM.
        exit_code: 0 if the run saved what it had.
    """

    def __init__(self, signal_name: str, exit_code: int) -> None:
        super().__init__(exit_code)
        self.signal_name = signal_name


def stop_signal_numbers() -> list[signal.Signals]:
    """The signals that ask a run to end; without SIGHUP where it is ignored, as under `nohup`."""
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


class StopSignals:
    """Receives the signals that ask a run to end.

    Outside `deferred` the first one ends the process: at once until `unwinds`, then by raising
    `StoppedBySignal` in the main thread. Within it the first one is only remembered. A second one
    ends the process at once.

    Attributes:
        received: The signal that was received first; None as long as there is none.
        unwinds: Whether the process has begun anything that it would have to undo. Until then it
            imports packages, of which some swallow an exception or turn it into another one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.unwinds = False
        self._saves = False
        self._received_at = 0.0
        self._deferred = False
        self._has_trained = False

    def install_handlers(self) -> None:
        """Starts to receive signals, and those of a launcher that is lost. Main thread only."""
        for number in stop_signal_numbers():
            signal.signal(number, self._handle)
        atexit.register(ignore_stop_signals)
        if was_launched(os.environ):
            call_when_parent_is_gone(self._stop_without_launcher)

    @contextmanager
    def deferred(self, *, saves: bool) -> Iterator[None]:
        """In the block the run looks at `received` after each step, instead of being interrupted.

        What follows its last step, the export, is not interrupted either: another rank may not have
        received the signal.

        Args:
            saves: Whether it saves before it stops, so that its exit code is 0.
        """
        self._deferred, self._saves, self._has_trained = True, saves, True
        yield
        self._deferred = self._saves = False

    def stop(self) -> NoReturn:
        """Raises `StoppedBySignal`; the signal may be another rank's."""
        number = self.received or signal.SIGTERM
        name = number.name if self.received else "a signal on another rank"
        raise StoppedBySignal(name, 0 if self._saves else 128 + number)

    def _stop_without_launcher(self) -> None:
        print_unbuffered("the launcher of this run is gone")
        os.kill(os.getpid(), signal.SIGTERM)

    def _say_what_follows(self) -> str:
        if self._deferred:
            return "the run ends after the step or the export in hand; once more: at once"
        if self._has_trained:
            return "the run, which had finished its training, ends at once"
        return "the run ends before it has made a step; nothing is lost"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), now
            if os.environ.get("RANK", "0") == "0":
                print_unbuffered(f"{self.received.name}: {self._say_what_follows()}")
            if self._deferred:
                return
            if not self.unwinds:
                os._exit(128 + number)
            self.stop()
        elif now - self._received_at > SAME_REQUEST_SECONDS:
            os._exit(128 + number)


def ignore_stop_signals() -> None:
    """At the end of a process: a signal that comes late does not change its exit code.

    Without it, Python's own end would give the signals their defaults again.
    """
    for number in stop_signal_numbers():
        signal.signal(number, signal.SIG_IGN)


def forward_stop_signals_to_ranks(script: str) -> None:
    """Passes the stop signals of this process, a launcher, on to its children that run `script`.

    It then waits for them as before: they save and end. After a second signal they are killed if
    they do not end at once. Without any rank yet, the first signal ends this process.
    """
    # of accelerate's requirements; a rank does without
    import psutil

    first_at: float | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        ranks, has_ended = [], False
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                has_ended |= child.status() == psutil.STATUS_ZOMBIE
                # one that has ended has no command line
                ranks += [child] if script in child.cmdline() else []
        if not ranks and has_ended:
            # the signal had reached it as well; its exit code is that of the run
            return
        if not ranks:
            # not by an exception, which may come amid an import
            print_unbuffered(f"{signal.Signals(number).name}: no run was started yet")
            os._exit(128 + number)
        _send_to_living(ranks, number)
        if first_at is None:
            first_at = time.monotonic()
        elif time.monotonic() - first_at > SAME_REQUEST_SECONDS:
            threading.Timer(KILL_AFTER_SECONDS, _send_to_living, [ranks, signal.SIGKILL]).start()

    for number in stop_signal_numbers():
        signal.signal(number, forward)
    atexit.register(ignore_stop_signals)


def _send_to_living(processes: Iterable["psutil.Process"], number: int) -> None:
    for process in processes:
        # which does not mistake another process for one whose number it has got
        if process.is_running():
            process.send_signal(number)


def was_launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process, so that it is not to outlive its parent."""
    return any(name in environment for name in LAUNCHED_VARIABLES)


def call_when_parent_is_gone(action: Callable[[], None], *, parent: int | None = None) -> None:
    """Calls `action`, in a thread, once the process that started this one has ended.

    Args:
        action: What to do then.
        parent: Process number of the parent, where that may have ended before this call; None
            stands for the present one.
    """
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(CHECK_PARENT_SECONDS)
        action()

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def print_unbuffered(line: str) -> None:
    """Prints to standard error, also in the middle of another print, as a signal handler may be."""
    # nobody may be there to read it
    with suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{line}\n".encode())
