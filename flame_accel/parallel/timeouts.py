"""How long the processes of a run wait for each other, and the error of one that waited in vain.

The collectives themselves belong to the engines and to `collectives`.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from accelerate import Accelerator
from torch.distributed import DistError, ProcessGroup, distributed_c10d

from flame_accel.config import CommConfig, UserError

# messages of torch's gloo and its rendezvous
TIMEOUT_MESSAGE = re.compile("timed? ?out", re.IGNORECASE)
CONNECTION_LOST_MESSAGE = re.compile(
    "connection (was likely )?(closed|reset|refused)|broken pipe", re.IGNORECASE
)
EXTENDED_TIMEOUT_SECONDS = 3600
"""Timeout while a rank is busy with files; large checkpoints take minutes on slow disks."""
groups_that_keep_their_timeout: set[ProcessGroup] = set()
"""Those of threads beside training, for which its phases mean nothing."""


def enable_flight_recorder(comm: CommConfig, run_folder: str) -> None:
    """Turns torch's flight recorder of collectives on, before the process group starts.

    It keeps the last `comm.trace_buf_size` collectives; when one times out, NCCL writes them to
    the files `comm_trace_RANK` in the run folder, which `torchfrtrace` reads. Variables that the
    environment already has are kept.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(comm.trace_buf_size))
    if comm.trace_buf_size:
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
        os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", f"{run_folder}/comm_trace_")


def wait_and_set_train_timeout(accelerator: Accelerator, comm: CommConfig) -> None:
    """Shortens the timeout to `comm.train_timeout_seconds`; all ranks call it after the first step.

    Starting, compiling and tuning take ranks unequally long; afterwards a rank that is late by so
    much will not come.
    """
    if accelerator.num_processes == 1:
        return
    # no rank may still wait for what began under the longer timeout
    accelerator.wait_for_everyone()
    _set_timeout_of_all_groups(comm.train_timeout_seconds)


def _set_timeout_of_all_groups(seconds: int) -> None:
    """Sets the timeout of every process group that training uses, those of meshes included."""
    for group in set(distributed_c10d._world.pg_map) - groups_that_keep_their_timeout:
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


@contextmanager
def extended_timeout(accelerator: Accelerator, seconds_afterwards: int) -> Iterator[None]:
    """Extends the timeout while some ranks handle large files or tune kernels and others wait.

    All ranks must enter it; they wait for each other at its end.

    Args:
        accelerator: The run's Accelerator.
        seconds_afterwards: Timeout that applies again after the block.
    """
    if accelerator.num_processes == 1:
        yield
        return
    _set_timeout_of_all_groups(EXTENDED_TIMEOUT_SECONDS)
    yield
    accelerator.wait_for_everyone()
    _set_timeout_of_all_groups(seconds_afterwards)


@contextmanager
def explain_timeout_and_connection_errors(comm: CommConfig) -> Iterator[None]:
    """Explains errors of collectives whose cause is that another process is missing or has ended.

    Args:
        comm: The timeouts, for the message.

    Raises:
        UserError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if not isinstance(error, DistError) and "gloo" not in message:
            raise
        if TIMEOUT_MESSAGE.search(message):
            raise UserError(
                "another process of the run did not arrive in time: it hangs, or does something "
                f"that the others do not ({message.splitlines()[0]})",
                where=f"after {comm.init_timeout_seconds} s while starting and in the first step "
                f"(comm.init_timeout_seconds), or {comm.train_timeout_seconds} s later on "
                "(comm.train_timeout_seconds)",
                remedy="look at what the other ranks printed last; raise the timeout if they were "
                "only slow",
            ) from error
        if CONNECTION_LOST_MESSAGE.search(message):
            raise UserError(
                f"another process of the run has ended ({message.splitlines()[0]})",
                remedy="look at what that process printed last",
            ) from error
        raise
