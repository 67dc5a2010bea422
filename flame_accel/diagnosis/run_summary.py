"""What a run consists of, in a few lines of its log before the first step and after the second."""

import torch
from accelerate import Accelerator
from torch import nn

from flame_accel import parallel
from flame_accel.config import TrainingConfig
from flame_accel.data import RunData
from flame_accel.models import TotalAndNonEmbeddingCount
from flame_accel.observe import get_logger


def log_run_summary(
    accelerator: Accelerator,
    training: TrainingConfig,
    model: nn.Module,
    num_parameters: TotalAndNonEmbeddingCount,
    run_data: RunData,
) -> None:
    """Logs the model's size, the data, and what a step consists of.

    Args:
        accelerator: The run's accelerator.
        training: Options of section training.
        model: The model as Accelerate prepared it.
        num_parameters: Its number of parameters.
        run_data: The datasets.
    """
    log = get_logger()
    log.info(
        "model: %s, %s", parallel.unwrap_model(accelerator, model).config.model_type, num_parameters
    )
    if stream := parallel.describe_residual_stream_if_cast(accelerator, training):
        log.info(stream)
    log.info("data: %s", run_data)
    log.info(
        "step: %d rows x %d ranks x %d micro-batches x %d tokens = %s tokens; %d steps",
        training.batch_size,
        parallel.dp_size(accelerator),
        training.gradient_accumulation_steps,
        training.seq_len,
        f"{parallel.tokens_per_step(training, accelerator):,}",
        training.steps,
    )


ROOM_SHARE = 0.9
"""Of a GPU's memory, up to which larger micro-batches are advised."""


def log_larger_micro_batch_if_it_fits(accelerator: Accelerator, training: TrainingConfig) -> None:
    """Logs that the same step would fit into fewer passes, or that there is room for more rows.

    Called after some steps, between two of them: what is allocated then stays, and the rest of the
    peak grows with the rows of a micro-batch.
    """
    if accelerator.device.type != "cuda":
        return
    memory = torch.cuda.get_device_properties(accelerator.device).total_memory
    peak = torch.cuda.max_memory_allocated(accelerator.device)
    lasting = torch.cuda.memory_allocated(accelerator.device)
    advice = advise_larger_micro_batch(training, memory=memory, peak=peak, lasting=lasting)
    if advice:
        get_logger().info("%s", advice)


def advise_larger_micro_batch(
    training: TrainingConfig, *, memory: int, peak: int, lasting: int
) -> str:
    """One line, or nothing where not twice as many rows fit.

    Args:
        training: Options of section training.
        memory: Bytes of the device.
        peak: Most bytes that were allocated in a step.
        lasting: Bytes that are allocated between steps.
    """
    rows, accumulation = training.batch_size, training.gradient_accumulation_steps
    fitting = int(rows * (ROOM_SHARE * memory - lasting) / max(peak - lasting, 1))
    if fitting < 2 * rows:
        return ""
    fewer = next(
        n for n in range(1, accumulation + 1)
        if accumulation % n == 0 and rows * accumulation // n <= fitting
    )  # fmt: skip
    text = (
        f"memory: a peak of {peak / 2**30:.1f} of {memory / 2**30:.1f} GiB with micro-batches of "
        f"{rows} rows; {fitting} would fit"
    )
    if fewer < accumulation:
        text += (
            f": --training.batch_size {rows * accumulation // fewer} "
            f"--training.gradient_accumulation_steps {fewer} is the same step in fewer passes"
        )
    return text
