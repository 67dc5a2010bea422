"""Who writes a checkpoint: the thread that trains, which then waits, or one beside it.

In the background the stall of training is that of a copy to host memory (`host_copies`); a thread
writes the copy (`background`) while the next steps change the weights. Both write the same bytes
(`snapshot`). At most one is in flight: the next save waits for it, and the last one too.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from flame_accel.checkpoint.background import BackgroundThread
from flame_accel.checkpoint.failed_saves import FailedSaveError, FailedSaves
from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.hf_model import gather_full_weights_to_main
from flame_accel.checkpoint.host_copies import HostCopies, why_copies_do_not_fit
from flame_accel.checkpoint.optimizer_shards import copy_optimizer_shard_of_rank
from flame_accel.checkpoint.snapshot import take_snapshot, write_snapshot
from flame_accel.checkpoint.tensor_storage import optimizer_state_bytes
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.config import UsageError
from flame_accel.data.loading.stream_state import StreamState
from flame_accel.observe import get_logger
from flame_accel.observe.meter import MeterState
from flame_accel.observe.watchdog import Watchdog
from flame_accel.parallel import HostGroup, unwrap_model
from flame_accel.parallel.sharded_tensors import full_shape

FINISH_SECONDS = 600.0
"""Longest wait, in seconds, for what is in flight when a run ends by an error."""
DEVICES_THAT_WRITE = ("cpu",)
"""With `auto` training waits on these: the cores that train would do the write, so that no time is
gained, and a kill could cost the steps since the checkpoint before."""
log = get_logger()


def check_async_mode(accelerator: Accelerator, async_mode: str) -> None:
    """Checks that checkpoints can be written as the option asks.

    Raises:
        UsageError: They cannot.
    """
    if async_mode == "async_with_pinned_mem" and accelerator.device.type != "cuda":
        raise UsageError(
            f"pinned memory is for copies from a GPU, and this run is on {accelerator.device.type}",
            where="checkpoint.async_mode = async_with_pinned_mem",
            remedy="set checkpoint.async_mode = async, or leave it out",
        )


class CheckpointSaver:
    """Saves the checkpoints of a run. Every rank has one, and all call its methods alike.

    Args:
        accelerator: The run's accelerator. Every rank must construct it at the same place.
        folder: The run's checkpoints.
        async_mode: The option.
        failed_saves: Counts and logs the saves that fail, when they do.
        watchdog: Knows when this thread waits for the one beside it.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer as Accelerate prepared it.
        tokenizer: Saved next to the weights.

    Attributes:
        description: How checkpoints before the last one are written.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: CheckpointFolder,
        *,
        async_mode: str,
        failed_saves: FailedSaves,
        watchdog: Watchdog,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._accelerator, self._folder, self._async_mode = accelerator, folder, async_mode
        self._failed_saves, self._watchdog = failed_saves, watchdog
        self._model, self._optimizer = model, optimizer
        # the original may be in use by the data loader of this process
        self._tokenizer = copy.deepcopy(tokenizer)
        self._ranks = HostGroup(accelerator)
        self._thread = BackgroundThread("the write of a checkpoint")
        self._copies: HostCopies | None = None
        self._metrics: dict[str, float] = {}
        self.description = ""

    def choose_thread_and_log(self) -> None:
        """Decides who writes the checkpoints before the last one, and allocates what it takes.

        Called when the optimizer has its state; only the first call does anything. Every rank must
        call it.
        """
        if self.description:
            return
        problem = self._why_training_waits()
        if problem is None:
            pinned = self._accelerator.device.type == "cuda" and self._async_mode != "async"
            self._copies = HostCopies(page_locked=pinned)
            if pinned:
                # locking takes seconds: a rehearsal allocates all that a snapshot needs
                self._copy_tensors(self._copies)
            gib = sum(self._ranks.gather_objects(self._needed_host_bytes())) / 2**30
            kind = "page-locked host" if pinned else "host"
            self.description = (
                f"while training goes on, from a copy in {kind} memory ({gib:.2f} GiB)"
            )
        else:
            self.description = f"while training waits ({problem})"
        log.info("checkpoints: written %s", self.description)

    def _why_training_waits(self) -> str | None:
        """The reason not to write in the background; None to do it. The same on every rank."""
        if self._async_mode == "disabled":
            return "checkpoint.async_mode = disabled"
        if self._async_mode != "auto":
            return None
        device = self._accelerator.device.type
        if device in DEVICES_THAT_WRITE:
            return f"on a {device} a write beside it would gain no time"
        return why_copies_do_not_fit(self._ranks, self._needed_host_bytes())

    def _needed_host_bytes(self) -> int:
        """Bytes of this rank's copy, nearly; that of the main process has the weights."""
        accelerator = self._accelerator
        state_bytes = optimizer_state_bytes(accelerator, self._model, self._optimizer)
        weights_bytes = 0
        if accelerator.is_main_process:
            parameters = unwrap_model(accelerator, self._model).parameters()
            weights_bytes = sum(4 * full_shape(parameter).numel() for parameter in parameters)
        return weights_bytes + state_bytes // accelerator.num_processes

    def _copy_tensors(self, copies: HostCopies) -> None:
        to_cpu = copies.begin_copy
        gather_full_weights_to_main(self._accelerator, self._model, torch.float32, to_cpu=to_cpu)
        copy_optimizer_shard_of_rank(self._accelerator, self._model, self._optimizer, to_cpu=to_cpu)
        copies.wait_for_copies()

    def save(
        self,
        state: TrainState,
        *,
        stream_state: StreamState,
        meter_state: MeterState,
        weights_only_dtype: torch.dtype | None,
        is_last: bool,
        when_complete: Callable[[Path], object],
    ) -> None:
        """Saves what resuming from here needs, once what is in flight has been written.

        Every rank must call it. A failure is logged by `FailedSaves`, in the background when it
        happens; it ends the run, if it does, here or at the next call of `save`.

        Args:
            state: The run's counters.
            stream_state: Cursors of this rank's lanes.
            meter_state: Of this rank's meter.
            weights_only_dtype: As of `take_snapshot`.
            is_last: Whether training ends here, and so waits.
            when_complete: Called with the path of the complete checkpoint, by whoever wrote it.

        Raises:
            FailedSaveError: There were too many failures in a row.
        """
        # the last one too: it would take as much memory again
        copies = self._copies
        self._wait_for_device()
        begin = time.monotonic()
        self.wait(is_last=is_last)
        if copies is not None:
            copies.begin_snapshot()
        snapshot = take_snapshot(
            self._accelerator,
            state,
            model=self._model,
            optimizer=self._optimizer,
            tokenizer=self._tokenizer,
            stream_state=stream_state,
            meter_state=meter_state,
            weights_only_dtype=weights_only_dtype,
            to_cpu=Tensor.cpu if copies is None else copies.begin_copy,
        )

        def write() -> None:
            begin_write = time.monotonic()
            with self._failed_saves.logged(is_last=is_last):
                checkpoint = write_snapshot(
                    snapshot,
                    self._folder,
                    self._ranks,
                    is_main_process=self._accelerator.is_main_process,
                )
                self._metrics["checkpoint/write_seconds"] = time.monotonic() - begin_write
                when_complete(checkpoint)

        if copies is not None:
            copies.wait_for_copies()
        if copies is None:
            write()
        elif is_last:
            write()
            # the export that follows needs memory as well
            copies.free()
        else:
            self._thread.start(write)
        self._metrics["checkpoint/stall_seconds"] = time.monotonic() - begin

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint of this rank is in flight."""
        return self._thread.is_busy

    def _wait_for_device(self) -> None:
        """What the device still has to do is no stall of a save."""
        if self._accelerator.device.type != "cpu":
            torch.accelerator.synchronize()

    def wait(self, *, is_last: bool = False) -> None:
        """Waits until the checkpoint in flight is written. Every rank must call it.

        Args:
            is_last: Whether the last save follows, which is tried whatever has failed before.

        Raises:
            FailedSaveError: It failed, and there were too many failures in a row.
        """
        with self._watchdog.long_phase("write"):
            try:
                self._thread.wait()
            except FailedSaveError:
                # it was logged when it happened
                if not is_last:
                    raise

    @contextmanager
    def finished_at_end(self) -> Iterator[None]:
        """Where the block ends by an error, what is in flight is written first, in limited time."""
        try:
            yield
        except BaseException:
            with self._watchdog.long_phase("write"):
                self._thread.wait_or_log(FINISH_SECONDS)
            raise
        finally:
            if self._copies is not None and not self._thread.is_busy:
                self._copies.free()

    def take_metrics(self) -> dict[str, float]:
        """Seconds of the last save and of the last write, each once."""
        return {name: self._metrics.pop(name) for name in tuple(self._metrics)}
