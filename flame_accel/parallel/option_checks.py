"""Checks that the devices and the engine of a run support its options, before anything is built.

Contradictions between options and launch are found earlier, while the Accelerator is built
(`topology`, `launch_settings`, `deepspeed_config`).
"""

from accelerate import Accelerator
from transformers import PreTrainedConfig

from flame_accel.config import Float8Config, TrainingConfig
from flame_accel.parallel.compilation import check_compiler_available
from flame_accel.parallel.float8 import check_float8_support
from flame_accel.parallel.ranks import tp_size
from flame_accel.parallel.resharding import check_reshard_after_forward
from flame_accel.parallel.tensor import check_tensor_parallel_support


def check_parallel_options(
    accelerator: Accelerator,
    training: TrainingConfig,
    float8: Float8Config,
    model_config: PreTrainedConfig,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Checks all options of this package that a device, an engine or a model may not support.

    Args:
        accelerator: The run's Accelerator.
        training: Resharding, compiling and tensor parallelism; the degree is the Accelerator's.
        float8: Recipe of 8-bit products.
        model_config: Config of the model to train.
        trust_remote_code: Whether the code that the config's `auto_map` names may run.

    Raises:
        UserError: Names the option, what it lacks here, and what works.
    """
    check_reshard_after_forward(accelerator, training.fsdp_reshard_after_forward)
    if training.compile:
        check_compiler_available(accelerator.device)
    check_float8_support(accelerator, float8)
    check_tensor_parallel_support(
        model_config,
        tp_size(accelerator),
        loss_parallel=not training.disable_loss_parallel,
        trust_remote_code=trust_remote_code,
    )
