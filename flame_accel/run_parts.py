"""What a training run consists of: the components it computes with, and its state as it goes on.

`train` builds both and passes them on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import PreTrainedTokenizerBase

from flame_accel import data, models, observe
from flame_accel.checkpoint import CheckpointFolder, CheckpointSaver, FailedSaves, TrainState
from flame_accel.config import CommConfig
from flame_accel.evaluation import Evaluator
from flame_accel.hub.uploads import HubUploads
from flame_accel.parallel import extended_timeout
from flame_accel.training import PassGraphs, SpikeGuard


class Components(NamedTuple):
    """What a run computes with; model and optimizer as Accelerate prepared them."""

    tokenizer: PreTrainedTokenizerBase
    run_data: data.RunData
    model: nn.Module
    optimizer: AcceleratedOptimizer
    num_parameters: models.TotalAndNonEmbeddingCount
    flops_per_token: float | None
    """Training FLOPs, forward and backward; None if the model's mixer is unknown."""
    graphs: PassGraphs | None = None
    """Runs passes as CUDA graphs, if so configured."""


class LoopState(NamedTuple):
    """What changes from step to step: counters, data, measurements, and where they are written."""

    state: TrainState
    checkpoints: CheckpointFolder
    batches: data.StepBatches
    evaluator: Evaluator | None
    """None without validation."""
    meter: observe.Meter
    remaining_time: observe.RemainingTime
    metric_logger: observe.MetricLogger
    uploads: HubUploads
    failed_saves: FailedSaves
    saver: CheckpointSaver
    watchdog: observe.Watchdog
    skipped_updates: observe.SkippedUpdates
    spike_guard: SpikeGuard | None
    """None unless updates are skipped as spikes."""

    @contextmanager
    def long_phase(self, phase: str, accelerator: Accelerator, comm: CommConfig) -> Iterator[None]:
        """In the block ranks wait long for each other, and its time is not that of steps.

        Every rank must enter it.

        Args:
            phase: One of `observe.watchdog.PHASES`.
            accelerator: The run's accelerator.
            comm: The timeouts that apply again afterwards.
        """
        with (
            self.watchdog.long_phase(phase),
            self.meter.throughput_paused(),
            self.remaining_time.timed(phase),
            extended_timeout(accelerator, comm.train_timeout_seconds),
        ):
            yield
