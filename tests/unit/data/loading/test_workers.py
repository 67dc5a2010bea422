"""Worker processes: signals, errors, and their end with the run."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.loading.workers import explain_lost_workers
from tests.helpers.numbered_batches import FIXED, Numbers, build, content

KEPT: list[object] = []


def test_persistent_workers_stay_and_others_go(streams: dict) -> None:
    batches = build(FIXED, num_workers=2, persistent_workers=True)
    found, workers = [], []
    for _ in range(3):
        found += [content(step, FIXED) for step in islice(batches, 2)]
        workers.append({child.pid for child in multiprocessing.active_children()})
    assert found == streams[False][:6]
    assert workers[0] == workers[1] == workers[2]
    assert len(workers[0]) == 2
    del batches
    assert not workers[0] & {child.pid for child in multiprocessing.active_children()}


def test_there_are_no_more_workers_than_lanes() -> None:
    steps = iter(build(FIXED, world_size=8, rank=3, num_workers=5))
    next(steps)
    assert len(multiprocessing.active_children()) == 2


def test_workers_leave_signals_to_the_run(streams: dict) -> None:
    steps = iter(build(FIXED, num_workers=1, prefetch_factor=1))
    found = [content(next(steps), FIXED)]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid or 0, number)
        found.append(content(next(steps), FIXED))
    assert found == streams[False][:4]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_that_the_system_kills_is_an_error_and_no_endless_wait(num_workers: int) -> None:
    steps = iter(build(FIXED, num_workers=num_workers, prefetch_factor=1))
    next(steps)
    worker = multiprocessing.active_children()[0]
    # as the kernel does when memory runs out
    os.kill(worker.pid or 0, signal.SIGKILL)
    said = rf"memory ran out.*pid.*{worker.pid}.*(killed|exited unexpectedly)"
    with pytest.raises(UserError, match=said), explain_lost_workers():
        for _ in range(100):
            next(steps)


def test_another_error_is_no_lost_worker() -> None:
    with pytest.raises(RuntimeError, match="a mistake"), explain_lost_workers():
        raise RuntimeError("a mistake")


def test_workers_end_with_a_process_that_never_let_go_of_them() -> None:
    def fail() -> None:
        steps = iter(build(FIXED, num_workers=1))
        next(steps)
        # as a traceback does with the loop's frame
        KEPT.append(steps)

    process = multiprocessing.get_context("fork").Process(target=fail)
    process.start()
    process.join(timeout=30)
    assert process.exitcode == 0


def test_workers_end_with_a_process_that_could_not_start_them_all() -> None:
    def fail() -> None:
        start = threading.Thread.start

        def fail_to_start(thread: threading.Thread) -> None:
            if thread.name == "QueueFeederThread":
                raise RuntimeError("can't start new thread")
            start(thread)

        threading.Thread.start = fail_to_start
        with pytest.raises(RuntimeError, match="can't start"):
            next(iter(build(FIXED, num_workers=2)))

    process = multiprocessing.get_context("fork").Process(target=fail)
    process.start()
    process.join(timeout=30)
    assert process.exitcode == 0


def test_loading_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    next(iter(build(FIXED)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_users_problem_in_a_worker_arrives_as_it_is() -> None:
    empty = build(FIXED, num_workers=1, skipped=dict.fromkeys(range(50), Skipped("empty")))
    with pytest.raises(UserError, match="no text in any of the 50 documents") as problem:
        next(iter(empty))
    assert "Traceback" not in str(problem.value)


class Broken(Numbers):
    def __getitem__(self, index: int) -> Document | Skipped:
        raise ZeroDivisionError("a mistake of ours")


def test_a_mistake_in_a_worker_arrives_with_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match=r"(?s)worker process 0.*__getitem__.*of ours"):
        next(iter(build(FIXED, num_workers=1, documents=Broken())))


def is_running(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_run_that_was_killed() -> None:
    ours, theirs = multiprocessing.Pipe()

    def train() -> None:
        # a worker's part of a step is more than a pipe holds: it cannot get rid of what it has read
        steps = iter(build(Packing(seq_len=4096), num_workers=2, prefetch_factor=8))
        next(steps)
        theirs.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)

    run = multiprocessing.get_context("fork").Process(target=train)
    run.start()
    workers = ours.recv()
    # they read ahead meanwhile
    time.sleep(0.5)
    assert len(workers) == 2
    assert all(map(is_running, workers))
    run.kill()
    run.join()
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in workers if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
