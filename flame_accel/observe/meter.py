"""From steps to records: sums on the device, one reduction over the ranks per record.

The meter measures time, loss and throughput of a window of steps: those since the last record.
Records are written by `metric_logger` and `console`.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypedDict

import torch
from accelerate import Accelerator
from torch import Tensor

from flame_accel.parallel import (
    all_gather_concatenated,
    all_reduce_sum_over_dp,
    dp_rank,
    dp_size,
    widest_float_dtype,
)
from flame_accel.training import StepResult

LOSS_SUM, TARGETS, SKIPPED, SKIPPED_IN_A_ROW = range(4)


class MeterState(TypedDict):
    """The unfinished window and the counters of one rank, or the sum of several; JSON-able."""

    sums: list[float]
    """Indexed by LOSS_SUM, TARGETS, SKIPPED and SKIPPED_IN_A_ROW."""
    max_loss: float | None
    """None before the first step of a window."""


class GlobalAndLocalLosses(NamedTuple):
    """The losses of a window on all ranks and on this one."""

    sums: list[float]
    """Over all ranks, indexed by LOSS_SUM, TARGETS and SKIPPED; SKIPPED is the same on each."""
    max_loss: float
    """Largest loss of a step on a rank, in nats per target."""
    local_losses: dict[str, float]
    """`train/loss` and `train/max_loss` of this rank alone."""


class Meter:
    """Accumulates the steps since the last record, and their time.

    Args:
        accelerator: The run's accelerator.
        flops_per_token: Training FLOPs per token of the model; None if unknown.
        device_peak_flops: Peak FLOP/s of one device; None if unknown.
        states: `losses_and_skips` of every data-parallel rank's meter in the resumed run, by
            rank; empty for a new run.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        flops_per_token: float | None,
        device_peak_flops: float | None,
        states: Sequence[MeterState] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.accelerator = accelerator
        self.flops_per_token = flops_per_token
        self.device_peak_flops = device_peak_flops
        self.clock = clock
        # nats and targets of the window; skipped updates of the run, and the latest in a row
        dtype = widest_float_dtype(accelerator.device)
        self.sums = torch.zeros(4, dtype=dtype, device=accelerator.device)
        self.max_loss = torch.full((), -torch.inf, device=accelerator.device)
        self.grad_norm = torch.zeros((), device=accelerator.device)
        self.steps = 0
        self.tokens = 0
        self.data_seconds = 0.0
        self.paused_seconds = 0.0
        self.started_at = clock()
        self.local: dict[str, float] = {}
        """Values of the last record that this rank measured alone."""
        if states:
            self._load_losses_and_skips(states)

    def start_clock(self) -> None:
        """Starts the clock of the first window; called right before the first step."""
        self.started_at = self.clock()

    def add_step(self, result: StepResult, *, tokens: int) -> None:
        """Adds one step to the window.

        Args:
            result: Of `train_step` on this rank.
            tokens: Tokens of the step on all ranks.
        """
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
        """Counts the time inside the block as waiting for data."""
        started_at = self.clock()
        yield
        self.data_seconds += self.clock() - started_at

    @contextmanager
    def throughput_paused(self) -> Iterator[None]:
        """Excludes the time inside the block (evaluation, checkpoints) from the throughput."""
        started_at = self.clock()
        yield
        self.paused_seconds += self.clock() - started_at

    def finish_window(self, *, lr: float) -> dict[str, float]:
        """Ends the window and returns its record, the same on every rank but for time and memory.

        Every rank must call it. Synchronises with the device.

        Args:
            lr: Learning rate of the last step.
        """
        accelerator = self.accelerator
        sums, max_loss, local_losses = self._reduce_losses_over_ranks()
        now = self.clock()
        elapsed_seconds = now - self.started_at - self.paused_seconds
        tokens_per_second = self.tokens / elapsed_seconds
        per_device = tokens_per_second / accelerator.num_processes
        costs = {
            "time/step_seconds": elapsed_seconds / self.steps,
            "time/data_seconds": self.data_seconds / self.steps,
            "memory/peak_gib": peak_allocated_or_resident_gib(accelerator.device),
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
        self._reset_window_except_skips(now)
        return record

    def sync_and_count_consecutive_skips(self) -> int:
        """How many of the latest updates were skipped, without one between them. Synchronises."""
        return int(self.sums[SKIPPED_IN_A_ROW].item())

    def go_back(self, states: Sequence[MeterState]) -> None:
        """Goes on from the window and the counters of a checkpoint, with a new clock.

        Args:
            states: `losses_and_skips` of every data-parallel rank's meter, by rank.
        """
        self._reset_window_except_skips(self.clock())
        self._load_losses_and_skips(states)

    def _reduce_losses_over_ranks(self) -> GlobalAndLocalLosses:
        """Combines the window of all ranks, with one transfer from the device."""
        shared = all_reduce_sum_over_dp(self.accelerator, self.sums[:SKIPPED].clone())
        largest = (
            all_gather_concatenated(self.accelerator, self.max_loss.reshape(1)).max().reshape(1)
        )
        local = [self.sums[:SKIPPED], self.max_loss.reshape(1).to(shared.dtype)]
        values = torch.cat([shared, self.sums[SKIPPED:], largest.to(shared.dtype), *local]).tolist()
        *sums, max_loss, local_nats, local_targets, local_max_loss = values
        local_losses = {
            "train/loss": local_nats / max(local_targets, 1),
            "train/max_loss": local_max_loss,
        }
        return GlobalAndLocalLosses(sums, max_loss, local_losses)

    def _reset_window_except_skips(self, now: float) -> None:
        self.sums[:SKIPPED] = 0
        self.max_loss = torch.full_like(self.max_loss, -torch.inf)
        self.steps = self.tokens = 0
        self.data_seconds = self.paused_seconds = 0.0
        self.started_at = now

    def losses_and_skips(self) -> MeterState:
        """This rank's unfinished window and counters, JSON-able."""
        return {"sums": self.sums.tolist(), "max_loss": none_if_infinite(self.max_loss)}

    def _load_losses_and_skips(self, states: Sequence[MeterState]) -> None:
        """Continues the window that was saved: its losses count, its time does not."""
        rank, size = dp_rank(self.accelerator), dp_size(self.accelerator)
        state = window_state_for_rank(states, dp_rank=rank, dp_size=size)
        self.sums.copy_(torch.tensor(state["sums"], dtype=self.sums.dtype))
        if state["max_loss"] is not None:
            self.max_loss.fill_(state["max_loss"])


def window_state_for_rank(
    states: Sequence[MeterState], *, dp_rank: int, dp_size: int
) -> MeterState:
    """The state with which a data-parallel rank resumes, from those that all ranks saved.

    With as many ranks as before each resumes its own, so that sums are bit-identical. Otherwise
    rank 0 takes the sums of all.

    Args:
        states: Saved states by rank.
        dp_rank: This data-parallel rank.
        dp_size: Number of data-parallel ranks now.
    """
    if len(states) == dp_size:
        return states[dp_rank]
    columns = zip(*(state["sums"][:SKIPPED] for state in states), strict=True)
    window = [sum(column) if dp_rank == 0 else 0.0 for column in columns]
    losses = [state["max_loss"] for state in states if state["max_loss"] is not None]
    # every rank counts the same skipped updates
    counters = states[0]["sums"][SKIPPED:]
    return {"sums": [*window, *counters], "max_loss": max(losses, default=None)}


def none_if_infinite(value: Tensor) -> float | None:
    """A scalar tensor as a number; None for infinities, which JSON does not have."""
    number = value.item()
    return number if number not in (float("inf"), float("-inf")) else None


def peak_allocated_or_resident_gib(device: torch.device) -> float:
    """Peak memory in GiB: allocated on a GPU, or resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts kilobytes, macOS bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
