"""skipped.jsonl: every update that was skipped, why, and which batch it was; and every rewind.

Whether an update was skipped stays on the device until a record or a checkpoint is due; then all
ranks look at the steps since. When an update is skipped is decided in `training`, and in `rewind`
what follows from many. Lines after the first rewind say how many there were before them
(`rewinds`), since the same steps come again.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flame_accel.data import StepBatches
from flame_accel.files import write_bytes_atomically
from flame_accel.json_text import parse_json_text
from flame_accel.observe.console import get_logger
from flame_accel.observe.metrics_file import MetricsFile
from flame_accel.parallel import all_gather_concatenated, tp_size, widest_float_dtype
from flame_accel.training import StepResult

SKIPPED_FILE = "skipped.jsonl"


class _PendingStep(NamedTuple):
    step: int
    values: tuple[Tensor, ...]
    """Whether it was skipped, loss, gradient norm, and the limits of both; on the device."""
    cursors: tuple[list[Any], list[Any]]
    """Of this rank's lanes, before and after the step."""


class _Place(NamedTuple):
    """Where in a run something happened; the order is that of time."""

    rewinds: float
    """How many there were before."""
    step: float


class SkippedUpdates:
    """Writes the updates that are skipped to skipped.jsonl and the log.

    Args:
        accelerator: The run's accelerator.
        run_folder: The run folder.
        step: Number of completed updates; what is recorded of later ones will happen again.
        rewinds: `TrainState.rewinds` of these updates.
        batches: This rank's batches.
        sigma: `training.skip_spike_sigma`, for the log.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run_folder: Path,
        *,
        step: int,
        rewinds: int,
        batches: StepBatches,
        sigma: float,
    ) -> None:
        self.accelerator = accelerator
        self.file = MetricsFile(run_folder / SKIPPED_FILE)
        self.batches = batches
        self.sigma = sigma
        self._cursors: list[Any] = batches.state_dict()["cursors"]
        self._pending: list[_PendingStep] = []
        self._rewinds = rewinds
        if accelerator.is_main_process:
            _delete_lines_after(self.file.path, _Place(rewinds, step))

    def add_step(self, step: int, result: StepResult) -> None:
        """Keeps what is needed to say of a step what it was. Waits for nothing.

        Args:
            step: Number of completed steps, this one included.
            result: Of `train_step`.
        """
        before, self._cursors = self._cursors, self.batches.state_dict()["cursors"]
        values = (result.skipped, result.grad_norm)
        if result.spike is not None:
            values += (*result.spike.values.unbind(), *result.spike.limits.unbind())
        self._pending.append(_PendingStep(step, values, (before, self._cursors)))

    def log_and_write(self) -> None:
        """Reports what was skipped since the last call. Every rank must call it; waits."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        device = self.accelerator.device
        dtype = widest_float_dtype(device)
        table = torch.stack(
            [torch.stack([value.to(device, dtype) for value in each.values]) for each in pending]
        )
        of_ranks = all_gather_concatenated(self.accelerator, table[None])
        # an update that one rank skips is reported even if others do not; ranks must not part here
        table[:, 0] = of_ranks[:, :, 0].amax(dim=0)
        rows = table.tolist()
        skipped = [number for number, row in enumerate(rows) if row[0]]
        if not skipped:
            return
        first_lane = self.batches.state_dict()["first_lane"]
        cursors = [(first_lane, *pending[number].cursors) for number in skipped]
        # the ranks of a tensor-parallel group are consecutive and have the same lanes
        of_all = gather_object([cursors])[:: tp_size(self.accelerator)]
        for index, number in enumerate(skipped):
            self._log_and_write_one(pending[number].step, rows[number], [c[index] for c in of_all])

    def _log_and_write_one(
        self, step: int, row: list[float], cursors: list[tuple[int, list[Any], list[Any]]]
    ) -> None:
        if not self.accelerator.is_main_process:
            return
        _, grad_norm, *spike = row
        reason = describe_reason(grad_norm, spike, self.sigma)
        get_logger().warning(
            "step %d: its update is skipped: %s; its batch is in %s", step, reason, SKIPPED_FILE
        )
        record: dict[str, Any] = {"step": step, "reason": reason, "grad_norm": grad_norm}
        if spike:
            names = ("loss", "grad_norm", "loss_limit", "grad_norm_limit")
            record |= dict(zip(names, spike, strict=True))
        self._write_record(record, cursors)

    def write_rewind(self, step: int, checkpoint: str, cursors_there: list[Any]) -> None:
        """Writes that the run goes back. Every rank must call it, after `log_and_write`.

        Args:
            step: Number of completed updates; those behind the checkpoint are taken back.
            checkpoint: Name of the checkpoint's folder.
            cursors_there: Of all lanes, in the checkpoint: what was read since is left out.
        """
        first_lane = self.batches.state_dict()["first_lane"]
        own = cursors_there[first_lane : first_lane + len(self._cursors)]
        lanes = gather_object([(first_lane, own, self._cursors)])[:: tp_size(self.accelerator)]
        if self.accelerator.is_main_process:
            self._write_record({"step": step, "rewound_to": checkpoint}, lanes)
        self._rewinds += 1

    def _write_record(
        self, record: dict[str, Any], cursors: list[tuple[int, list[Any], list[Any]]]
    ) -> None:
        if self._rewinds:
            record["rewinds"] = self._rewinds
        record["lanes"] = {
            first + lane: [before, after]
            for first, befores, afters in cursors
            for lane, (before, after) in enumerate(zip(befores, afters, strict=True))
        }
        self.file.append(record)


def describe_reason(grad_norm: float, spike: list[float], sigma: float) -> str:
    """Why an update was skipped, in words.

    Args:
        grad_norm: Norm of its gradient.
        spike: Loss, gradient norm and their limits; empty without the guard against spikes.
        sigma: `training.skip_spike_sigma`.
    """
    if not math.isfinite(grad_norm) or not spike:
        return f"the norm of its gradient is {grad_norm}"
    loss, norm, loss_limit, norm_limit = spike
    reasons = [
        f"its {name} {value:.4g} is above {limit:.4g}, {sigma:g} standard deviations over the mean "
        "of the updates before it"
        for name, value, limit in (
            ("loss", loss, loss_limit),
            ("gradient norm", norm, norm_limit),
        )
        if value > limit
    ]
    return " and ".join(reasons)


def _delete_lines_after(path: Path, place: _Place) -> None:
    """Deletes the lines of later steps, and those that are torn."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _place_of(line) <= place]
    if kept != lines:
        write_bytes_atomically(path, b"".join(kept))


def _place_of(line: bytes) -> _Place:
    """Where a line stands in the run; behind all others if it is damaged."""
    try:
        record = parse_json_text(line) if line.endswith(b"\n") else {}
        return _Place(int(record.get("rewinds", 0)), int(record["step"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return _Place(math.inf, math.inf)
