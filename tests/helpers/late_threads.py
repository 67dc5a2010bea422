"""Ranks whose threads of gloo get a processor only when no other thread wants it, and then exit.

    python late_threads.py FOLDER NUM_RUNS [teardown]

prints the exit codes of NUM_RUNS runs of two ranks; "teardown" leaves the end to Python.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from flame_accel.process_end import exit_without_teardown

kept: list[dist.ProcessGroup] = []


def run_rank(rank: int, rendezvous: Path) -> None:
    """A few collectives, and an end that keeps the group, as a run does."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    before = set(os.listdir("/proc/self/task"))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    for thread in set(os.listdir("/proc/self/task")) - before:
        os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
    kept.extend(dist.distributed_c10d._world.pg_map)
    for number in range(3):
        dist.all_gather_object([None, None], {"number": number})
        dist.broadcast(torch.ones(100), 0)
    dist.destroy_process_group()


def fork_rank(rank: int, rendezvous: Path) -> int:
    """The process number of a new rank; in the rank it does not return."""
    process = os.fork()
    if process == 0:
        if sys.argv[3:] == ["teardown"]:
            run_rank(rank, rendezvous)
        else:
            with exit_without_teardown():
                run_rank(rank, rendezvous)
        sys.exit()
    return process


if __name__ == "__main__":
    codes: list[int] = []
    for number in range(int(sys.argv[2])):
        ranks = [fork_rank(rank, Path(sys.argv[1], str(number))) for rank in range(2)]
        codes += [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    print(*codes, flush=True)
    os._exit(0)
