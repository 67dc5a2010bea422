"""The one list of checks that a run passes after its set-up and before anything is built.

Options that are wrong by themselves never get here (`config`). What is known of machines and models
lives in `trainability` and `conformance`.
"""

from accelerate import Accelerator
from transformers import PreTrainedConfig

from flame_accel.checkpoint import check_async_mode
from flame_accel.config import Config
from flame_accel.diagnosis.conformance.packing_support import (
    check_keeps_documents_apart_unless_fla_model,
    check_no_known_packing_issue,
)
from flame_accel.diagnosis.trainability import check_machine_and_list_warnings
from flame_accel.kernels.install import KernelKind
from flame_accel.observe import check_trackers_can_start, get_logger
from flame_accel.observe.profiling import check_memory_snapshot_support
from flame_accel.parallel import (
    check_parallel_options,
    compute_dtype,
    run_on_main_and_broadcast,
)
from flame_accel.training import (
    check_optimizer_support,
    check_spike_guard_support,
    describe_long_warmup,
)


def check_run_support_and_log_warnings(
    config: Config,
    accelerator: Accelerator,
    model_config: PreTrainedConfig,
    active_kernels: KernelKind,
) -> None:
    """Checks that the model can train on this machine as the options ask; logs warnings.

    Args:
        config: The whole configuration.
        accelerator: The Accelerator of the run.
        model_config: Config of the model to train.
        active_kernels: "triton" or "torch", as `kernels.install` returned it.

    Raises:
        UserError: It cannot.
    """
    check_parallel_options(
        accelerator,
        config.training,
        config.float8,
        model_config,
        trust_remote_code=config.model.trust_remote_code,
    )
    check_optimizer_support(accelerator, config.optimizer)
    check_async_mode(accelerator, config.checkpoint.async_mode)
    check_spike_guard_support(accelerator, config.training)
    run_on_main_and_broadcast(accelerator, lambda: check_trackers_can_start(config.metrics))
    check_memory_snapshot_support(accelerator.device, config.profiling)
    if config.training.varlen:
        check_no_known_packing_issue(model_config, active_kernels=active_kernels)
        check_keeps_documents_apart_unless_fla_model(model_config, accelerator.device.type)
    long_warmup = describe_long_warmup(config.training)
    if long_warmup is not None and accelerator.is_main_process:
        get_logger().warning("learning rate: %s", long_warmup)
    for warning in check_machine_and_list_warnings(
        model_config,
        config.model.kernels,
        config.job.dump_folder,
        compute_dtype(accelerator),
    ):
        get_logger().info("This machine: %s", warning)
