"""The one place that builds an Accelerator, transforms and prepares a model, and checks both."""

from flame_accel.parallel.accelerator import build_accelerator
from flame_accel.parallel.collectives import (
    AnyRankAgrees,
    HostGroup,
    all_gather_concatenated,
    all_gather_over_dp,
    all_reduce_sum_over_dp,
    end_training_and_destroy_groups,
    run_on_main_and_broadcast,
    widest_float_dtype,
)
from flame_accel.parallel.deepspeed import is_deepspeed, read_deepspeed_update_result
from flame_accel.parallel.describe import compute_dtype, describe_topology
from flame_accel.parallel.fp32_parameters import average_fsdp2_ignored_gradients
from flame_accel.parallel.gradients import UpdateResult, clip_gradients_and_get_norm
from flame_accel.parallel.option_checks import check_parallel_options
from flame_accel.parallel.prepare import (
    autocast_unless_fsdp2,
    prepare_transformed_model_and_optimizer,
    unwrap_model,
)
from flame_accel.parallel.ranks import dp_rank, dp_size, tokens_per_step, tp_size
from flame_accel.parallel.residual_stream import describe_residual_stream_if_cast
from flame_accel.parallel.timeouts import (
    explain_timeout_and_connection_errors,
    extended_timeout,
    wait_and_set_train_timeout,
)
from flame_accel.parallel.transform import apply_float8_tp_cast_compile_and_checkpointing

__all__ = [
    "AnyRankAgrees",
    "HostGroup",
    "UpdateResult",
    "all_gather_concatenated",
    "all_gather_over_dp",
    "all_reduce_sum_over_dp",
    "apply_float8_tp_cast_compile_and_checkpointing",
    "autocast_unless_fsdp2",
    "average_fsdp2_ignored_gradients",
    "build_accelerator",
    "check_parallel_options",
    "clip_gradients_and_get_norm",
    "compute_dtype",
    "describe_residual_stream_if_cast",
    "describe_topology",
    "dp_rank",
    "dp_size",
    "end_training_and_destroy_groups",
    "explain_timeout_and_connection_errors",
    "extended_timeout",
    "is_deepspeed",
    "prepare_transformed_model_and_optimizer",
    "read_deepspeed_update_result",
    "run_on_main_and_broadcast",
    "tokens_per_step",
    "tp_size",
    "unwrap_model",
    "wait_and_set_train_timeout",
    "widest_float_dtype",
]
