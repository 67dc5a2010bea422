"""What is done to a built model before its optimizer is built, in the order that works.

Each transformation has its own module; none changes the names of parameters.
"""

from accelerate import Accelerator
from transformers import PreTrainedModel

from flame_accel import kernels
from flame_accel.config import ActivationCheckpointConfig, Float8Config, TrainingConfig
from flame_accel.parallel.activations import checkpoint_activations
from flame_accel.parallel.compilation import compile_blocks
from flame_accel.parallel.float8 import convert_to_float8
from flame_accel.parallel.fp32_parameters import move_fp32_parameters_and_ignore_if_fsdp2
from flame_accel.parallel.ranks import tp_size
from flame_accel.parallel.residual_stream import (
    cast_embeddings_under_autocast,
    casts_residual_stream_to_bf16,
)
from flame_accel.parallel.tensor import apply_tensor_parallel


def apply_float8_tp_cast_compile_and_checkpointing(
    accelerator: Accelerator,
    model: PreTrainedModel,
    training: TrainingConfig,
    activation_checkpoint: ActivationCheckpointConfig,
    float8: Float8Config,
) -> None:
    """Converts to float8, shards over TP ranks, casts, compiles and checkpoints, in place.

    Args:
        accelerator: The run's Accelerator, which supports the options (`option_checks`).
        model: As built, on the CPU.
        training: Tensor parallelism's loss, the residual stream's dtype, and compiling.
        activation_checkpoint: What is recomputed in the backward pass.
        float8: Which matrix products are computed in 8-bit floats.

    Raises:
        UserError: The model does not support what an option asks for.
        RuntimeError: Ranks have built different weights.
    """
    convert_to_float8(model, float8)
    apply_tensor_parallel(accelerator, model, loss_parallel=not training.disable_loss_parallel)
    if casts_residual_stream_to_bf16(accelerator, training):
        cast_embeddings_under_autocast(model)
    if tp_size(accelerator) == 1:
        recomputed = activation_checkpoint.mode != "none"
        kernels.share_inputs_of_linear_maps(model, compiled=training.compile, recomputed=recomputed)
    if training.compile:
        compile_blocks(model)
    # around what is compiled: the checkpoint itself cannot be
    checkpoint_activations(model, activation_checkpoint)
    move_fp32_parameters_and_ignore_if_fsdp2(accelerator, model)
