"""A process that has imported everything and forks Python programs, launches of train.py above all.

`accelerate launch` starts each rank as a fresh Python, which imports for ten seconds before it
trains for one. This server imports once; a launch then runs accelerate's own launcher in a fork,
and only where that would start new Pythons the ranks are forked instead. All else is real: the file
of accelerate_configs/, accelerate's translation of it, one process per rank, gloo, train.py from
its first line.

Reads one JSON object per line, {"command", "folder", "environment", "output", "errors", "seconds"}:
what follows `python`, or `accelerate launch` if that is its first word; the working folder and the
environment; the files that take its output and its error messages, which may be one; its time
limit. Answers a line with the exit code of each, in order.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]


def serve_requests() -> None:
    """Answers requests until the input ends."""
    import_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        print(run_in_own_group(**json.loads(line)), flush=True)


def import_everything() -> None:
    """Imports what every rank would import; nothing is computed, so that forking is safe."""
    import tempfile

    gc.disable()
    importlib.import_module("torch.distributed.run")

    importlib.import_module("flame_accel")

    # it looks for a device when it is imported, and finds none here
    os.environ["DS_ACCELERATOR"] = "cpu"
    importlib.import_module("deepspeed")

    importlib.import_module("flame_accel.train")
    importlib.import_module("transformers.models.llama.modeling_llama")

    tempfile.gettempdir()
    # no fork looks through these objects for garbage, which would also copy their pages
    gc.freeze()
    gc.enable()


def run_in_own_group(
    command: list[str],
    folder: str,
    environment: dict[str, str],
    output: str,
    errors: str,
    seconds: float,
) -> int:
    """Runs a program in its own process group, all of which is killed when the time is up."""
    child = os.fork()
    if child == 0:
        os.setsid()
        redirect_output(output, errors)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        run_then_exit(lambda: run_command(command))
    code = wait_for_exit_code({child}, seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code is None:
        with open(output, "a") as file:
            file.write(f"\nnot finished after {seconds} s\n")
        os.waitpid(child, 0)
    return 1 if code is None else code


def run_command(command: list[str]) -> None:
    """`accelerate launch ...`, `-m module ...`, `-c code ...` or a script; launches fork ranks."""
    import torch.distributed.run
    from accelerate.commands import launch as launcher

    torch.distributed.run.run = fork_ranks
    launcher.subprocess = ForkingSubprocess
    first, *others = command
    if first == "accelerate":
        launcher.launch_command(launcher.launch_command_parser().parse_args(others[1:]))
    elif first == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *others[1:]]
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        run_script(command)


class ForkingSubprocess:
    """Replaces `subprocess` in accelerate's launcher of one process."""

    PIPE = subprocess.PIPE
    CalledProcessError = subprocess.CalledProcessError

    class Popen:
        """A program `python train.py ...` with an environment."""

        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            self.returncode = 0
            self.command, self.environment = command, env

        def wait(self) -> None:
            """Runs it to its end."""
            child = os.fork()
            if child == 0:
                os.environ.update(self.environment)
                run_then_exit(lambda: run_script(self.command[1:]))
            self.returncode = wait_for_exit_code({child}, None) or 0


def fork_ranks(args: Any) -> None:
    """Replaces torchrun's agent: forks this machine's ranks with the variables that it sets."""
    local, machines = int(args.nproc_per_node), int(str(args.nnodes).split(":")[0])
    assert machines == 1, "test_nodes_equal_one_process.py launches several machines"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = set()
    for rank in range(local):
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                GROUP_RANK="0",
                WORLD_SIZE=str(local),
                LOCAL_WORLD_SIZE=str(local),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
            run_then_exit(lambda: run_script([args.training_script, *args.training_script_args]))
        children.add(child)
    code = wait_for_exit_code(children, None)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    if code:
        raise SystemExit(code)


def run_script(command: list[str]) -> None:
    """Runs a Python script with its arguments, as `__main__`."""
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def run_then_exit(work: Any) -> NoReturn:
    """Runs a function, then ends this process with the exit code that Python would give."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for_exit_code(children: set[int], seconds: float | None) -> int | None:
    """The first exit code other than 0, or 0 when all have ended; None after `seconds`."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while children:
        child, status = os.waitpid(-1 if len(children) > 1 else min(children), os.WNOHANG)
        if child == 0:
            if deadline is not None and time.monotonic() > deadline:
                return None
            time.sleep(0.01)
            continue
        children.discard(child)
        code = os.waitstatus_to_exitcode(status)
        if code:
            return code if code > 0 else 128 - code
    return 0


def redirect_output(output: str, errors: str | None = None) -> None:
    """Redirects what this process and its children print to a file, or to two."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    if errors not in (None, output):
        descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    # the requests are not theirs
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


if __name__ == "__main__":
    serve_requests()
