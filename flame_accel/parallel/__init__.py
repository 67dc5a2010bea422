"""The one place that builds an Accelerator and prepares a model with it, and checks both."""

from flame_accel.parallel.accelerator import (
    autocast,
    build_accelerator,
    prepare,
    unwrap,
)
from flame_accel.parallel.deepspeed import is_deepspeed, read_deepspeed_step
from flame_accel.parallel.exchange import gather_over_ranks, sum_dtype, sum_over_ranks
from flame_accel.parallel.float8 import keep_scales_ready
from flame_accel.parallel.gradients import clip_gradients
from flame_accel.parallel.promises import compute_precision, describe_topology
from flame_accel.parallel.ranks import data_rank, data_ranks, tensor_ranks
from flame_accel.parallel.transform import transform_model
from flame_accel.parallel.waiting import explain_waiting, limit_waiting, patience
from flame_accel.parallel.whole import average_whole_gradients

__all__ = [
    "autocast",
    "average_whole_gradients",
    "build_accelerator",
    "clip_gradients",
    "compute_precision",
    "data_rank",
    "data_ranks",
    "describe_topology",
    "explain_waiting",
    "gather_over_ranks",
    "is_deepspeed",
    "keep_scales_ready",
    "limit_waiting",
    "patience",
    "prepare",
    "read_deepspeed_step",
    "sum_dtype",
    "sum_over_ranks",
    "tensor_ranks",
    "transform_model",
    "unwrap",
]
