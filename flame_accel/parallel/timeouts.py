"""How long the processes of a run wait for each other, and what a run says that waited in vain.

The exchanges themselves are the engines' and `collectives`'s business.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from accelerate import Accelerator
from torch.distributed import DistError, distributed_c10d

from flame_accel.config import CommConfig, UserError

# how torch's gloo and its rendezvous say that nobody came, and that somebody left
TIMED_OUT = re.compile("timed? ?out", re.IGNORECASE)
LEFT_ALONE = re.compile("connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
FILES_SECONDS = 3600
"""Longest wait for a rank that is busy with files; large checkpoints take minutes on slow disks."""


def record_collectives(comm: CommConfig, run_folder: str) -> None:
    """Turns the flight recorder of exchanges on, before the process group starts.

    It keeps the last `comm.trace_buf_size` exchanges; when one times out, NCCL writes them to
    files `comm_trace_RANK` of the run folder, which `torchfrtrace` reads. What the environment
    already says holds.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(comm.trace_buf_size))
    if comm.trace_buf_size:
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
        os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", f"{run_folder}/comm_trace_")


def set_train_timeout(accelerator: Accelerator, comm: CommConfig) -> None:
    """Shortens the longest wait to that of training, once the first step has been taken.

    Starting, compiling and tuning take ranks unequally long; afterwards one that does not come is
    not coming.
    """
    if accelerator.num_processes == 1:
        return
    # nobody may still be waiting for what began under the longer limit
    accelerator.wait_for_everyone()
    _set_limit(comm.train_timeout_seconds)


def _set_limit(seconds: int) -> None:
    """Sets the longest wait of every group of this process, those of meshes among them."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


@contextmanager
def extended_timeout(accelerator: Accelerator, comm: CommConfig) -> Iterator[None]:
    """Waits long for ranks that handle large files or tune kernels while others have nothing to do.

    Args:
        accelerator: Of the run.
        comm: Its timeout of training holds again afterwards.
    """
    if accelerator.num_processes == 1:
        yield
        return
    _set_limit(FILES_SECONDS)
    yield
    accelerator.wait_for_everyone()
    _set_limit(comm.train_timeout_seconds)


@contextmanager
def explain_timeout(comm: CommConfig) -> Iterator[None]:
    """Says in plain words that another process did not come, or has ended.

    Raises:
        UserError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if not isinstance(error, DistError) and "gloo" not in message:
            raise
        if TIMED_OUT.search(message):
            raise UserError(
                "another process of the run did not come in time; it hangs, or works on something "
                f"that the others do not ({message.splitlines()[0]})",
                where=f"after {comm.init_timeout_seconds} s while starting and in the first step "
                f"(comm.init_timeout_seconds), {comm.train_timeout_seconds} s later on "
                "(comm.train_timeout_seconds)",
                remedy="look at what the other ranks printed last; raise the limit if they were "
                "only slow",
            ) from error
        if LEFT_ALONE.search(message):
            raise UserError(
                f"another process of the run has ended ({message.splitlines()[0]})",
                remedy="what it printed before says why",
            ) from error
        raise
