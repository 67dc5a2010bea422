"""What a run consists of, in a few lines of its log before the first step."""

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
