"""From steps to records: sums on the device, one exchange between ranks per record.

The meter knows the clock, the loss and the throughput of a window of steps (those since the last
record). Where a record is written is the business of `records` and `console`.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flame_accel.config import UserError
from flame_accel.parallel import (
    all_gather,
    all_reduce_sum,
    dp_rank,
    dp_size,
    sum_dtype,
)
from flame_accel.training import StepResult

LOSS_SUM, TARGETS, SKIPPED, SKIPPED_IN_A_ROW = range(4)


class Meter:
    """Sums of the steps since the last record, and what they cost.

    Args:
        accelerator: Of the run.
        flops_per_token: Training FLOPs per token of the model, or None if not known.
        device_peak_flops: FLOP/s of one device, or None if not known.
        states: `state_dict` of every data rank's meter in the run that is continued, or none.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        flops_per_token: float | None,
        device_peak_flops: float | None,
        states: Sequence[Mapping[str, Any]] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.accelerator = accelerator
        self.flops_per_token = flops_per_token
        self.device_peak_flops = device_peak_flops
        self.clock = clock
        # nats and targets since the last record; skipped updates of the run, and in a row up to now
        dtype = sum_dtype(accelerator.device)
        self.sums = torch.zeros(4, dtype=dtype, device=accelerator.device)
        self.max_loss = torch.full((), -torch.inf, device=accelerator.device)
        self.grad_norm = torch.zeros((), device=accelerator.device)
        self.steps = 0
        self.tokens = 0
        self.data_seconds = 0.0
        self.paused_seconds = 0.0
        self.started_at = clock()
        self.local: dict[str, float] = {}
        """What the last record says of this rank alone."""
        if states:
            self._load_state_dict(
                share_window(states, rank=dp_rank(accelerator), ranks=dp_size(accelerator))
            )

    def start(self) -> None:
        """Starts the clock of the first window, when all that has to be set up is."""
        self.started_at = self.clock()

    def add(self, result: StepResult, *, tokens: int) -> None:
        """Takes in one step. `tokens`: of the whole step, on all ranks."""
        self.sums[LOSS_SUM] += result.loss_sum
        self.sums[TARGETS] += result.targets
        self.sums[SKIPPED] += result.skipped
        self.sums[SKIPPED_IN_A_ROW] = (
            self.sums[SKIPPED_IN_A_ROW] + result.skipped
        ) * result.skipped
        self.max_loss = torch.maximum(self.max_loss, result.loss_sum / max(result.targets, 1))
        self.grad_norm = result.grad_norm
        self.steps += 1
        self.tokens += tokens

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as time spent waiting for the next batch."""
        started_at = self.clock()
        yield
        self.data_seconds += self.clock() - started_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time inside (evaluation, checkpoints) out of the throughput."""
        started_at = self.clock()
        yield
        self.paused_seconds += self.clock() - started_at

    def record(self, *, lr: float) -> dict[str, float]:
        """The record of the window, the same on every rank, and a new window.

        Synchronises with the device. Times and memory are the main process's own.
        """
        accelerator = self.accelerator
        sums, max_loss, local_losses = self._reduce()
        now = self.clock()
        elapsed_seconds = now - self.started_at - self.paused_seconds
        tokens_per_second = self.tokens / elapsed_seconds
        per_device = tokens_per_second / accelerator.num_processes
        costs = {
            "time/step_seconds": elapsed_seconds / self.steps,
            "time/data_seconds": self.data_seconds / self.steps,
            "memory/peak_gib": peak_memory_gib(accelerator.device),
        }
        self.local = local_losses | costs
        record = {
            "train/loss": sums[LOSS_SUM] / max(sums[TARGETS], 1),
            "train/max_loss": max_loss,
            "optimizer/lr": lr,
            "optimizer/grad_norm": self.grad_norm.item(),
            "optimizer/skipped_steps": int(sums[SKIPPED]),
            "throughput/tokens_per_second": tokens_per_second,
            "throughput/tokens_per_second_per_device": per_device,
            **costs,
        }
        if self.flops_per_token is not None:
            flops = per_device * self.flops_per_token
            record["throughput/tflops_per_device"] = flops / 1e12
            if self.device_peak_flops is not None:
                record["throughput/mfu"] = flops / self.device_peak_flops
        self._open_window(now)
        return record

    def stop_if_diverged(self, max_consecutive_skips: int) -> None:
        """Ends a run whose last updates were all skipped. Synchronises with the device.

        Raises:
            UserError: At least `max_consecutive_skips` updates were skipped one after the other; 0
                allows any number.
        """
        skips = int(self.sums[SKIPPED_IN_A_ROW].item())
        if max_consecutive_skips and skips >= max_consecutive_skips:
            raise UserError(
                f"the gradients of the last {skips} updates were not finite; "
                "the weights are as they were before them",
                where="training.max_consecutive_skips",
                remedy="continue from the last checkpoint with a lower optimizer.lr, a longer "
                "training.warmup_steps or a smaller training.max_norm",
            )

    def _reduce(self) -> tuple[list[float], float, dict[str, float]]:
        """Sums over all ranks of what differs between them, the largest loss, this rank's own."""
        shared = all_reduce_sum(self.accelerator, self.sums[:SKIPPED].clone())
        largest = all_gather(self.accelerator, self.max_loss.reshape(1)).max().reshape(1)
        own = [self.sums[:SKIPPED], self.max_loss.reshape(1).to(shared.dtype)]
        # one transfer for all of them
        values = torch.cat([shared, self.sums[SKIPPED:], largest.to(shared.dtype), *own]).tolist()
        *sums, max_loss, own_nats, own_targets, own_max_loss = values
        local_losses = {
            "train/loss": own_nats / max(own_targets, 1),
            "train/max_loss": own_max_loss,
        }
        return sums, max_loss, local_losses

    def _open_window(self, now: float) -> None:
        self.sums[:SKIPPED] = 0
        self.max_loss = torch.full_like(self.max_loss, -torch.inf)
        self.steps = self.tokens = 0
        self.data_seconds = self.paused_seconds = 0.0
        self.started_at = now

    def state_dict(self) -> dict[str, Any]:
        """This data rank's open window and counters, as plain numbers."""
        return {"sums": self.sums.tolist(), "max_loss": finite_or_none(self.max_loss)}

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the window of `state_dict`; its losses count, its time does not."""
        self.sums.copy_(torch.tensor(state["sums"], dtype=self.sums.dtype))
        if state["max_loss"] is not None:
            self.max_loss.fill_(state["max_loss"])


def share_window(
    states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int
) -> Mapping[str, Any]:
    """What a data rank goes on with of the saved `Meter.state_dict`s of all.

    Among as many as before each takes its own, so that sums keep their bits. Among others the first
    takes the losses of all.
    """
    if len(states) == ranks:
        return states[rank]
    columns = zip(*(state["sums"][:SKIPPED] for state in states), strict=True)
    window = [sum(column) if rank == 0 else 0.0 for column in columns]
    losses = [state["max_loss"] for state in states if state["max_loss"] is not None]
    # every rank counts the same skipped updates
    counters = states[0]["sums"][SKIPPED:]
    return {"sums": [*window, *counters], "max_loss": max(losses, default=None)}


def finite_or_none(value: Tensor) -> float | None:
    """JSON has no infinities."""
    number = value.item()
    return number if number not in (float("inf"), float("-inf")) else None


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory in GiB: allocated on the device, or resident on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # linux counts kilobytes, macOS bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
