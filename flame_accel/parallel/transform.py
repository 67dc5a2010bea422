"""What is done to a built model before its optimizer is made, in the order that works.

Each transformation has its own module; none changes the names of parameters.
"""

from accelerate import Accelerator
from transformers import PreTrainedModel

from flame_accel.config import ActivationCheckpointConfig, Float8Config, TrainingConfig
from flame_accel.parallel.activations import checkpoint_activations
from flame_accel.parallel.compilation import compile_blocks
from flame_accel.parallel.float8 import convert_to_float8
from flame_accel.parallel.tensor import split_model


def transform_model(
    accelerator: Accelerator,
    model: PreTrainedModel,
    training: TrainingConfig,
    activation_checkpoint: ActivationCheckpointConfig,
    float8: Float8Config,
) -> None:
    """Converts, splits, recomputes and compiles a model as the options say, in place.

    Raises:
        UserError: The model or the machine does not allow what an option asks for.
    """
    if float8.recipe_name is not None:
        convert_to_float8(model, float8)
    if training.tensor_parallel_degree > 1:
        split_model(accelerator, model, loss_parallel=not training.disable_loss_parallel)
    if activation_checkpoint.mode != "none":
        checkpoint_activations(model, activation_checkpoint)
    if training.compile:
        compile_blocks(model)
