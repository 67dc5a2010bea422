"""System calls that fail: those that change files below a folder are counted, some get an error.

The kernel hands each of them to a supervisor before it is done (seccomp's user notification), which
answers that it goes on or fails. So whatever code makes the call is met, in any thread: Python's,
libc's, that of tokenizers and safetensors in Rust. Needs Linux on x86-64, and no privileges.
"""

import ctypes
import errno
import fcntl
import json
import os
import platform
import re
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

IS_SUPPORTED = platform.system() == "Linux" and platform.machine() == "x86_64"
SECCOMP, SET_MODE_FILTER, NEW_LISTENER = 317, 1, 8
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
ALLOW, ASK_SUPERVISOR = 0x7FFF0000, 0x7FC00000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
RECEIVE, SEND = 0xC0502100, 0xC0182101
QUESTION = struct.Struct("QIIiIQ6Q")
"""id, thread, flags, number of the call, architecture, instruction, arguments."""
ANSWER = struct.Struct("QqiI")
"""id, value, negative error, flags."""
GOES_ON = 1
AT_FDCWD = -100
LONGEST_PATH = 4096


class _Call(NamedTuple):
    """Where a system call has the files that it changes."""

    name: str
    descriptor: int | None = None
    """Index of the argument that is an open file."""
    paths: tuple[tuple[int | None, int], ...] = ()
    """Indices of the arguments that are a path and, if it has one, the folder it starts from."""
    flags: int | None = None
    """Index of the flags of `open`: to read changes nothing."""


CALLS = {
    1: _Call("write", 0),
    18: _Call("write", 0),
    20: _Call("write", 0),
    296: _Call("write", 0),
    328: _Call("write", 0),
    40: _Call("write", 0),
    326: _Call("write", 2),
    76: _Call("truncate", paths=((None, 0),)),
    77: _Call("truncate", 0),
    285: _Call("allocate", 0),
    74: _Call("fsync", 0),
    75: _Call("fsync", 0),
    2: _Call("open", paths=((None, 0),), flags=1),
    85: _Call("open", paths=((None, 0),)),
    257: _Call("open", paths=((0, 1),), flags=2),
    82: _Call("rename", paths=((None, 0), (None, 1))),
    264: _Call("rename", paths=((0, 1), (2, 3))),
    316: _Call("rename", paths=((0, 1), (2, 3))),
    83: _Call("mkdir", paths=((None, 0),)),
    258: _Call("mkdir", paths=((0, 1),)),
    84: _Call("rmdir", paths=((None, 0),)),
    87: _Call("unlink", paths=((None, 0),)),
    263: _Call("unlink", paths=((0, 1),)),
    86: _Call("link", paths=((None, 1),)),
    265: _Call("link", paths=((2, 3),)),
    88: _Call("symlink", paths=((None, 1),)),
    266: _Call("symlink", paths=((1, 2),)),
}
"""By number on x86-64; write, pwrite64, writev, sendfile and others count as one."""
NEED_SPACE = ("write", "allocate", "open", "mkdir", "link", "symlink", "rename", "fsync")
"""What a full disk refuses; on network file systems and with delayed allocation, fsync as well."""


class CallFault(NamedTuple):
    """Which call fails, and how."""

    call: str
    """As `made_calls` has it."""
    occurrence: int
    """Among equal calls, from 0: threads may change the order of different ones."""
    error: int
    stays: bool
    """Whether all later calls that need space, or all if it is another error, fail as well."""

    def describe(self) -> str:
        """For the report."""
        name = errno.errorcode[self.error]
        nth = f" ({self.occurrence + 1})" if self.occurrence else ""
        return f"{self.call}{nth}: {name}{' from then on' if self.stays else ''}"


class CallLog(NamedTuple):
    """What a supervisor saw."""

    calls: list[str]
    """Such as `fsync checkpoint/step-6.tmp-writing/model.safetensors`, in order."""
    failed: int
    """How many of them it made fail."""


def read_call_log(path: Path) -> CallLog:
    """What the supervisor of a process that has ended wrote."""
    return CallLog(**json.loads(path.read_text()))


def supervise_calls_of_this_process(folder: str, log: str, fault: CallFault | None) -> None:
    """From here on, calls that change files below a folder are supervised; returns in a child.

    The process that calls it becomes the supervisor, and ends with the exit code of the child.

    Args:
        folder: Real path.
        log: File for a `CallLog`, not below the folder.
        fault: What fails; None lets all go on.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        listener = _hand_calls_to_a_supervisor()
        socket.send_fds(theirs, [b"listener"], [listener])
        for end in (ours, theirs):
            end.close()
        os.close(listener)
        return
    theirs.close()
    _supervise(child, ours, folder, log, fault)


def _hand_calls_to_a_supervisor() -> int:
    """Installs the filter for this process and its children; returns the supervisor's end."""
    jumps = [(JUMP_IF_EQUAL, len(CALLS) - i, 0, number) for i, number in enumerate(CALLS)]
    program = [(LOAD_WORD, 0, 0, 0), *jumps, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ASK_SUPERVISOR)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener: int = libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def _supervise(
    child: int, ours: socket.socket, folder: str, log: str, fault: CallFault | None
) -> NoReturn:
    calls: list[str] = []
    failed = occurrences = 0
    _, [listener], _, _ = socket.recv_fds(ours, 16, 1)
    for question in _questions(listener):
        identifier, thread, _, number, _, _, *arguments = question
        text, error = _text_of_call_below(folder, thread, CALLS[number], arguments), 0
        if text is not None:
            calls.append(text)
            if fault is not None:
                is_it = text == fault.call and occurrences == fault.occurrence
                occurrences += text == fault.call
                lasts = failed and fault.stays
                needs_space = CALLS[number].name in NEED_SPACE
                if is_it or (lasts and (needs_space or fault.error != errno.ENOSPC)):
                    failed, error = failed + 1, -fault.error
        answer = ANSWER.pack(identifier, 0, error, 0 if error else GOES_ON)
        # ENOENT: the thread was killed meanwhile
        with suppress(FileNotFoundError):
            fcntl.ioctl(listener, SEND, bytearray(answer))
    _, status = os.waitpid(child, 0)
    Path(log).write_text(json.dumps(CallLog(calls, failed)._asdict()))
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _questions(listener: int) -> Iterator[tuple[int, ...]]:
    """Calls that wait for an answer, until all processes with the filter are gone."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while not poll.poll()[0][1] & select.POLLHUP:
        question = bytearray(QUESTION.size)
        with suppress(FileNotFoundError):
            fcntl.ioctl(listener, RECEIVE, question)
            yield QUESTION.unpack(question)


def _text_of_call_below(folder: str, thread: int, call: _Call, arguments: list[int]) -> str | None:
    """The call with paths relative to the folder; None if it changes nothing below it."""
    if call.flags is not None and not arguments[call.flags] & (os.O_WRONLY | os.O_RDWR):
        return None
    try:
        if call.descriptor is not None:
            paths = [_open_path(thread, arguments[call.descriptor])]
        else:
            paths = [
                os.path.join(
                    _open_path(thread, AT_FDCWD if start is None else arguments[start]),
                    _read_text(thread, arguments[path]),
                )
                for start, path in call.paths
            ]
    except OSError:
        # no such descriptor or memory: the kernel says so itself
        return None
    inside = folder + os.sep
    if not any(path.startswith(inside) for path in paths):
        return None
    names = " -> ".join(path.removeprefix(inside) for path in paths)
    # temporary names differ from start to start
    names = re.sub(r"\.tmp-[0-9a-f]{16}", ".tmp-writing", names)
    names = re.sub(r"\.tmp-[0-9a-f]{8}-", ".tmp-", names)
    return f"{call.name} {re.sub('[.]tmp[0-9A-Za-z]{6}(?= |$)', '.tmp-of-safetensors', names)}"


def _open_path(thread: int, descriptor: int) -> str:
    number = ctypes.c_int(descriptor).value
    link = "cwd" if number == AT_FDCWD else f"fd/{number}"
    return os.readlink(f"/proc/{thread}/{link}")


def _read_text(thread: int, address: int) -> str:
    """The text at an address of a process, which ends with a zero."""
    content = b""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        while b"\0" not in content and len(content) < LONGEST_PATH:
            # not across the end of a page: the next one may not be there
            content += memory.read(256 - (address + len(content)) % 256)
    return os.fsdecode(content.partition(b"\0")[0])
