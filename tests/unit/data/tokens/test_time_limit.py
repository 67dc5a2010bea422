"""Code that loops ends, in any thread and after a fork, and nothing is left behind."""

import os
import threading
import time

import pytest

from flame_accel.data.tokens.time_limit import TimeLimitReached, time_limit


def loop_for_ever() -> str:
    try:
        with time_limit(0.1):
            while True:
                pass
    except TimeLimitReached:
        return "ended"


def test_a_loop_ends_here_in_a_thread_and_in_a_child():
    assert loop_for_ever() == "ended"
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(loop_for_ever())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == ["ended", "ended"]
    child = os.fork()
    if child == 0:
        os._exit(0 if loop_for_ever() == "ended" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_exception_does_not_arrive_behind_the_block():
    late = 0
    for _ in range(40):
        try:
            with time_limit(0.0):
                time.sleep(0.02)
        except TimeLimitReached:
            late += 1
        end = time.monotonic() + 0.005
        while time.monotonic() < end:
            pass
    # the watch comes by every 0.2 s
    assert 1 <= late < 40


def test_another_error_of_the_block_is_its_own():
    with pytest.raises(KeyError), time_limit(20):
        raise KeyError
