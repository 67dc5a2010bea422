"""The one place that builds an Accelerator and prepares a model with it, and checks both."""

from flame_accel.parallel.accelerator import (
    autocast,
    build_accelerator,
    describe_topology,
    prepare,
    unwrap,
)
from flame_accel.parallel.deepspeed import is_deepspeed, read_deepspeed_step
from flame_accel.parallel.exchange import gather_over_ranks, sum_dtype, sum_over_ranks
from flame_accel.parallel.gradients import clip_gradients
from flame_accel.parallel.ranks import data_rank, data_ranks, tensor_ranks
from flame_accel.parallel.transform import transform_model
from flame_accel.parallel.waiting import limit_waiting

__all__ = [
    "autocast",
    "build_accelerator",
    "clip_gradients",
    "data_rank",
    "data_ranks",
    "describe_topology",
    "gather_over_ranks",
    "is_deepspeed",
    "limit_waiting",
    "prepare",
    "read_deepspeed_step",
    "sum_dtype",
    "sum_over_ranks",
    "tensor_ranks",
    "transform_model",
    "unwrap",
]
