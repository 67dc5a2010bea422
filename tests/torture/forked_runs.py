"""Runs that start within a tenth of a second: forks of a process that has imported everything.

`RunForker` is the client. What it starts is the run as `accelerate launch` starts it, one process
per rank, from the first line of train_process; only the imports are done before.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.launch_server import import_everything, redirect_output, run_then_exit
from tests.helpers.launches import launch_variables
from tests.helpers.runs import ROOT, launch_environment
from tests.torture.faults import prepare_rank


class ForkedRun:
    """The processes of a run, one per rank, in a process group of their own.

    Args:
        forker: What started them, and knows their exit codes.
        pids: By rank.
        output: File with what they print.
    """

    def __init__(self, forker: "RunForker", pids: list[int], output: Path) -> None:
        self._forker, self.pids, self.output = forker, pids, output

    def signal_ranks(self, number: signal.Signals, ranks: Sequence[int] | None = None) -> None:
        """Signals some ranks, all of them if None; not those that have ended."""
        for rank in range(len(self.pids)) if ranks is None else ranks:
            self._forker.request(kill=self.pids[rank], signal=int(number))

    def exit_codes(self) -> list[int] | None:
        """Of all ranks, negative for signals; None as long as one is alive."""
        codes = self._forker.request(poll=self.pids)
        return None if None in codes else codes

    def wait(self, seconds: float = 120) -> list[int]:
        """Waits for all ranks and returns their exit codes; kills them when the time is up.

        A rank that waits for one that has failed is killed, as a launcher does it.
        """
        deadline = time.monotonic() + seconds
        while (codes := self.exit_codes()) is None:
            time.sleep(0.005)
            states = self._forker.request(poll=self.pids)
            if time.monotonic() > deadline or any(state not in (None, 0) for state in states):
                grace = time.monotonic() + 2
                while self.exit_codes() is None and time.monotonic() < grace:
                    time.sleep(0.01)
                self.signal_ranks(signal.SIGKILL)
        return codes

    def printed(self) -> str:
        """What all its processes printed so far."""
        return self.output.read_text(errors="replace")


class RunForker:
    """Starts runs on this machine's CPUs. Not for several threads."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.forked_runs"],
            env=launch_environment(),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._server.stdout and self._server.stdout.readline() == "ready\n"

    def start(
        self,
        options: Sequence[str],
        output: Path,
        *,
        ranks: int = 1,
        prepare: Mapping[str, Any] | None = None,
        **environment: str,
    ) -> ForkedRun:
        """Starts a run.

        Args:
            options: Of the command line.
            output: File for what it prints.
            ranks: Number of processes.
            prepare: JSON-able arguments of `faults.prepare_rank`, called on each before the run.
            environment: Further variables, of the engine for example.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        variables = [
            {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "true", **environment}
            if ranks == 1
            else launch_variables(ranks, environment)
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            for rank in range(ranks)
        ]
        pids = self.request(
            start=list(options), variables=variables, output=str(output), prepare=prepare
        )
        return ForkedRun(self, pids, output)

    def request(self, **request: Any) -> Any:
        """Asks the server, and returns its answer."""
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()


def serve_requests() -> None:
    """The server: starts, signals and reaps processes until its input ends."""
    import_everything()
    # a launcher that is lost ends a run; this process is not one
    print("ready", flush=True)
    exit_codes: dict[int, int | None] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if "start" in request:
            answer = [
                _fork_rank(
                    request["start"],
                    variables,
                    request["output"],
                    is_first=index == 0,
                    prepare=request["prepare"],
                )
                for index, variables in enumerate(request["variables"])
            ]
            exit_codes |= dict.fromkeys(answer)
        for pid in [pid for pid, code in exit_codes.items() if code is None]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                exit_codes[pid] = os.waitstatus_to_exitcode(status)
        if "kill" in request and exit_codes[request["kill"]] is None:
            os.kill(request["kill"], request["signal"])
        if "poll" in request:
            answer = [exit_codes[pid] for pid in request["poll"]]
        print(json.dumps(answer), flush=True)


def _fork_rank(
    options: list[str],
    variables: dict[str, str],
    output: str,
    *,
    is_first: bool,
    prepare: dict[str, Any] | None,
) -> int:
    """Forks one rank of a run; returns its process number."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        redirect_output(output) if is_first else _append_output(output)
        os.environ.update(variables)
        if prepare:
            prepare_rank(**prepare)
        from flame_accel.train_process import run_training

        sys.argv = ["train.py", *options]
        run_then_exit(lambda: run_training(options))
    return pid


def _append_output(path: str) -> None:
    """Redirects what this process prints to the end of a file that may not be there yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


if __name__ == "__main__":
    serve_requests()
