"""The guard against spikes: updates whose loss or gradient is far above those before it.

Loss and gradient norm are compared with the mean and the standard deviation of the last accepted
updates, on the device and without a wait of the host. All ranks decide by the same gathered values,
so that they agree bit by bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from flame_accel.config import TrainingConfig, UsageError
from flame_accel.parallel import (
    all_gather_concatenated,
    dp_size,
    is_deepspeed,
    widest_float_dtype,
)


class SpikeDecision(NamedTuple):
    """What the guard says of an update; tensors that nobody has waited for."""

    skipped: Tensor
    """1.0 if the update is to be skipped, else 0.0; 0-dimensional."""
    values: Tensor
    """Loss in nats per target, and gradient norm, of all ranks [2]."""
    limits: Tensor
    """Above which either is a spike [2]; infinite as long as too few updates are known."""


class SpikeGuard:
    """Keeps the window of accepted updates and decides which one is a spike.

    It decides once it knows half a window, and a skipped update does not enter it: a loss that has
    risen for good is left to the limit of skips in a row.

    Args:
        accelerator: The run's Accelerator.
        sigma: Standard deviations above the mean from which on a value is a spike.
        window: Number of accepted updates that are compared with.
        accepted: `accepted_values` of the resumed run; the latest ones count.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        sigma: float,
        window: int,
        accepted: Sequence[Sequence[float]] = (),
    ) -> None:
        self.accelerator = accelerator
        self.sigma = sigma
        self.window = window
        self.replace_window(accepted)

    def replace_window(self, accepted: Sequence[Sequence[float]]) -> None:
        """Forgets all updates, and remembers these; see `accepted_values`."""
        dtype, device = widest_float_dtype(self.accelerator.device), self.accelerator.device
        # losses and norms in their order, behind NaN in the places that are still empty
        self._values = torch.full((2, self.window), torch.nan, dtype=dtype, device=device)
        latest = list(accepted)[-self.window :]
        if latest:
            self._values[:, -len(latest) :] = torch.tensor(latest, dtype=dtype).T.to(device)

    def decide_and_remember(
        self, loss_sum: Tensor, global_targets: int | Tensor, grad_norm: Tensor, non_finite: Tensor
    ) -> SpikeDecision:
        """Decides about an update, which enters the window if it is accepted. All ranks call it.

        Args:
            loss_sum: Nats summed over the targets of this rank, 0-dimensional.
            global_targets: Number of targets of all ranks.
            grad_norm: Norm of the gradient of all ranks, 0-dimensional.
            non_finite: 1.0 if the update is to be skipped for that, else 0.0; 0-dimensional.
        """
        kept, device = self._values, self._values.device
        of_rank = torch.stack([value.to(device, kept.dtype) for value in (loss_sum, grad_norm)])
        of_ranks = all_gather_concatenated(self.accelerator, of_rank.reshape(1, 2))
        # TP ranks hold the same losses
        copies = len(of_ranks) // dp_size(self.accelerator)
        loss = of_ranks[:, 0].sum() / (global_targets * copies)
        values = torch.stack([loss, of_ranks[:, 1].amax()])
        mean = kept.nanmean(dim=1)
        deviation = (kept - mean[:, None]).square().nanmean(dim=1).sqrt()
        known = kept[0].isfinite().sum()
        limits = torch.where(known >= self.window // 2, mean + self.sigma * deviation, torch.inf)
        spike = (values > limits).any().to(non_finite)
        skipped = torch.maximum(spike, non_finite)
        accepted = values.isfinite().all() & (skipped.to(device) == 0)
        moved = torch.cat([kept[:, 1:], values[:, None]], dim=1)
        self._values = torch.where(accepted, moved, kept)
        return SpikeDecision(skipped, values, limits)

    def accepted_values(self) -> list[list[float]]:
        """Loss and gradient norm of each update in the window, in order; waits for the device."""
        return [pair for pair in self._values.T.tolist() if pair[0] == pair[0]]


def build_spike_guard_if_enabled(
    accelerator: Accelerator, training: TrainingConfig, accepted: Sequence[Sequence[float]]
) -> SpikeGuard | None:
    """The guard of a run, if it has one.

    Args:
        accelerator: The run's Accelerator.
        training: Options of section training.
        accepted: `SpikeGuard.accepted_values` of the resumed run; empty for a new one.
    """
    if not training.skip_spike_sigma:
        return None
    return SpikeGuard(
        accelerator,
        sigma=training.skip_spike_sigma,
        window=training.spike_window,
        accepted=accepted,
    )


def check_spike_guard_support(accelerator: Accelerator, training: TrainingConfig) -> None:
    """Checks that the engine of a run leaves it to the run whether an update is skipped.

    Raises:
        UserError: It does not, and the run is to skip spikes or to go back past skipped updates.
    """
    if training.skip_spike_sigma and is_deepspeed(accelerator):
        raise UsageError(
            "DeepSpeed takes the optimizer's step itself, and skips no spikes",
            where="training.skip_spike_sigma",
            remedy="launch with fsdp2.yaml, which shards as ZeRO does, or remove the option",
        )
    if training.max_rewinds and is_deepspeed(accelerator):
        raise UsageError(
            "DeepSpeed's engine loads no checkpoint in the middle of a run",
            where="training.max_rewinds",
            remedy="launch with fsdp2.yaml, which shards as ZeRO does, or remove the option",
        )
