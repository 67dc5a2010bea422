"""The experiments: what is done to runs, how often, and how long it takes."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from tests.torture import damages, disk_faults, interruptions
from tests.torture.laboratory import Laboratory, Outcome


class Experiment(NamedTuple):
    """Something that is done to runs."""

    title: str
    run: Callable[[Laboratory, Iterable[int]], Iterator[Outcome]]
    """Makes the trials of some numbers; raises `Skipped` where it cannot."""
    short: int
    """Trials of the short version."""
    long: int
    """Trials of the long one."""
    seconds: float
    """Of a trial, where another one is made at the same time on two cores."""


EXPERIMENTS = {
    "kill": Experiment("kill -9, one process", interruptions.kill_at_random, 2, 200, 3.5),
    "kill-two": Experiment(
        "kill -9, two processes", partial(interruptions.kill_at_random, ranks=2), 1, 60, 6
    ),
    "kill-fsdp2": Experiment("kill -9, two FSDP2 processes", interruptions.kill_fsdp2, 2, 30, 6),
    "kill-one-rank": Experiment(
        "kill -9 of one of two processes", interruptions.kill_one_rank, 2, 30, 5
    ),
    "signal": Experiment(
        "SIGTERM, SIGINT or SIGUSR1, which lose no step", interruptions.stop_by_signal, 2, 40, 3
    ),
    "signal-two": Experiment(
        "the same with two processes", partial(interruptions.stop_by_signal, ranks=2), 2, 20, 4
    ),
    "stop": Experiment(
        "SIGSTOP for good of a rank or a data worker", interruptions.stop_a_process, 1, 12, 25
    ),
    "poison": Experiment(
        "non-finite gradient on one of two processes", interruptions.poison_one_rank, 2, 20, 8
    ),
    "damage": Experiment("a file of a checkpoint is damaged", damages.damage_a_file, 3, 250, 1),
    "manifest": Experiment(
        "a bit of a manifest is flipped", damages.flip_the_manifest, 200, 3333, 0.01
    ),
    "names": Experiment(
        "folders that look like checkpoints, and what is in the way",
        damages.put_wrong_names,
        2,
        24,
        1.2,
    ),
    "writer": Experiment(
        "a second run in the same folder, which is refused", damages.start_a_second_writer, 1, 30, 2
    ),
    "world-size": Experiment(
        "another number of processes after a kill", damages.change_world_size, 1, 20, 4
    ),
    "full-disk": Experiment(
        "the disk is full for a while, or for good", disk_faults.fill_the_disk, 2, 30, 9
    ),
    # as many as there are
    "calls": Experiment(
        "a system call on a file of the run fails, once or from then on",
        disk_faults.fail_every_call,
        4,
        10_000,
        1.6,
    ),
    "calls-two": Experiment(
        "the same on one of two processes", partial(disk_faults.fail_every_call, ranks=2), 2, 100, 3
    ),
}


def run_experiment(laboratory: Laboratory, name: str, numbers: Iterable[int]) -> Iterator[Outcome]:
    """Makes the trials of some numbers, fewer where there are not so many.

    Raises:
        Skipped: They cannot be made on this machine.
    """
    laboratory.experiment = name
    yield from EXPERIMENTS[name].run(laboratory, numbers)
