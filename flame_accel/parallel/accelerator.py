"""From options and the launcher's environment to a checked Accelerator and a prepared model.

`accelerate launch` passes its YAML on as environment variables and turns some mistakes into
silence: a configuration for several devices on a machine without them becomes that many independent
runs. So a layout is settled first (`topology`), and what came out is compared with it (`checks`),
before and after `prepare`. Nothing else in the package constructs an Accelerator; data order, the
step and checkpoints live elsewhere and get the Accelerator as an argument.
"""

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ParallelismConfig,
    ProjectConfiguration,
)
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import PreTrainedModel

from flame_accel.config import CommConfig, TrainingConfig
from flame_accel.parallel.checks import check_initial_weights, check_launch, check_prepared
from flame_accel.parallel.deepspeed import (
    LAUNCH_FLAG,
    deepspeed_plugin,
    forget_deepspeed_config,
    is_deepspeed,
)
from flame_accel.parallel.launch import is_on
from flame_accel.parallel.ranks import tp_size
from flame_accel.parallel.resharding import check_resharding, set_resharding
from flame_accel.parallel.tensor import prepare_split
from flame_accel.parallel.timeouts import record_collectives
from flame_accel.parallel.topology import Topology, resolve_topology


def build_accelerator(
    training: TrainingConfig,
    comm: CommConfig,
    *,
    run_folder: str,
    tensorboard_folder: str,
    trackers: Sequence[str],
) -> Accelerator:
    """Builds the run's Accelerator for the devices and processes that the launcher provided.

    Args:
        training: Precision, accumulation and the degrees of parallelism.
        comm: Time-outs and the recorder of exchanges.
        run_folder: Where the run writes.
        tensorboard_folder: Folder of TensorBoard's files.
        trackers: Names of Accelerate's trackers.

    Raises:
        UserError: The launch cannot be what it says: devices are missing, options contradict the
            YAML.
    """
    on_cpu = not torch.accelerator.is_available() or is_on(os.environ, "ACCELERATE_USE_CPU")
    devices = None if on_cpu else torch.accelerator.device_count()
    topology = resolve_topology(training, os.environ, devices=devices)
    _settle_environment(topology, on_cpu)
    # deepspeed looks for its device when it is imported
    zero = None
    if topology.engine == "deepspeed":
        zero = deepspeed_plugin(training, bf16=topology.param_dtype == "bfloat16", on_cpu=on_cpu)
    if topology.world > 1:
        record_collectives(comm, run_folder)
    timeout = timedelta(seconds=comm.init_timeout_seconds)
    if on_cpu:
        _start_cpu_state(topology, timeout)
    accelerator = Accelerator(
        # accelerate gives DeepSpeed up where it is told to run on a CPU
        cpu=on_cpu and zero is None,
        mixed_precision="bf16" if topology.param_dtype == "bfloat16" else "no",
        deepspeed_plugin=zero,
        fsdp_plugin=_fsdp_plugin(topology, on_cpu) if topology.engine == "fsdp2" else None,
        parallelism_config=_parallelism_config(topology),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=training.gradient_accumulation_steps,
            adjust_scheduler=False,
            sync_with_dataloader=False,
            # FSDP2 without synchronisation keeps whole fp32 gradients on every rank
            sync_each_batch=topology.engine == "fsdp2",
        ),
        kwargs_handlers=[
            InitProcessGroupKwargs(backend=_backend(topology, on_cpu), timeout=timeout),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, bucket_cap_mb=100),
        ],
        project_config=ProjectConfiguration(project_dir=run_folder, logging_dir=tensorboard_folder),
        log_with=list(trackers) or None,
        step_scheduler_with_optimizer=False,
    )
    if zero is not None:
        forget_deepspeed_config()
    check_launch(accelerator, topology)
    check_resharding(accelerator, training.fsdp_reshard_after_forward)
    return accelerator


def _settle_environment(topology: Topology, on_cpu: bool) -> None:
    """Takes back what the launcher exported and the layout decides otherwise.

    Accelerate and transformers look at these variables themselves, whatever they are told.
    """
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        os.environ.pop(name, None)
    if topology.engine != "deepspeed":
        os.environ.pop(LAUNCH_FLAG, None)
    if topology.engine == "single":
        # a process group of one would only wrap the model
        os.environ.pop("LOCAL_RANK", None)
    if on_cpu:
        # accelerate imports deepspeed wherever it is installed, which then warns of the CPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # every rank builds the whole model from the seed; with it, ranks other than 0 would load none
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def _start_cpu_state(topology: Topology, timeout: timedelta) -> None:
    """Starts Accelerate's state on CPU, where each process would otherwise run for itself."""
    if topology.engine == "single":
        PartialState(cpu=True)
        return
    state = PartialState(cpu=True, timeout=timeout)
    if topology.engine in ("fsdp2", "tensor") and (
        state.distributed_type == DistributedType.MULTI_CPU
    ):
        # accelerate shards and makes meshes only for devices; over gloo both work on a CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _backend(topology: Topology, on_cpu: bool) -> str | None:
    """The backends of the process group; None leaves the choice to accelerate."""
    offloads = topology.engine == "fsdp2" and topology.offload
    if on_cpu or not offloads or not torch.cuda.is_available():
        return None
    # norms of offloaded gradients are summed over ranks in CPU memory
    return "cuda:nccl,cpu:gloo"


def _fsdp_plugin(topology: Topology, on_cpu: bool) -> FullyShardedDataParallelPlugin:
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        # accelerate's own default reduces gradients in bf16
        mixed_precision_policy=MixedPrecisionPolicy(
            param_dtype=getattr(torch, topology.param_dtype),
            reduce_dtype=getattr(torch, topology.reduce_dtype),
        ),
        cpu_offload=(
            CPUOffloadPolicy(pin_memory=not on_cpu) if topology.offload else OffloadPolicy()
        ),
        cpu_ram_efficient_loading=False,
        activation_checkpointing=False,
    )


def _parallelism_config(topology: Topology) -> ParallelismConfig | None:
    """The mesh where it has several axes; one axis is all that accelerate assumes by itself."""
    axes = topology.replicate > 1 and topology.shard > 1
    if not axes and topology.tensor == 1:
        return None
    # accelerate's way to name joined axes; the run could not do anything about it
    warnings.filterwarnings("ignore", message="Slicing a flattened dim")
    return ParallelismConfig(
        dp_replicate_size=topology.replicate,
        dp_shard_size=topology.shard,
        tp_size=topology.tensor,
        # from the environment otherwise
        cp_size=1,
        sp_size=1,
    )


def prepare(
    accelerator: Accelerator,
    model: PreTrainedModel,
    optimizer: Optimizer,
    training: TrainingConfig,
) -> tuple[torch.nn.Module, AcceleratedOptimizer]:
    """Hands model and optimizer to Accelerate and asserts that nothing got lost on the way.

    Returns:
        The model to call in the step, and the prepared optimizer.

    Raises:
        RuntimeError: The optimizer does not hold exactly the model's parameters, replicas differ,
            or weights are not spread as promised.
    """
    check_initial_weights(accelerator, model)
    if tp_size(accelerator) > 1:
        prepared, prepared_optimizer = prepare_split(accelerator, model, optimizer)
    else:
        prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    assert isinstance(prepared_optimizer, AcceleratedOptimizer)
    inner = unwrap(accelerator, prepared)
    # accelerate's wrapper of forward copies every output to fp32, logits included: gigabytes in
    # each step. the step opens `autocast` itself instead
    inner.__dict__.pop("forward", None)
    inner.__dict__.pop("_original_forward", None)
    set_resharding(accelerator, inner, training.fsdp_reshard_after_forward)
    check_prepared(accelerator, inner, prepared_optimizer)
    return prepared, prepared_optimizer


def unwrap(accelerator: Accelerator, model: torch.nn.Module) -> PreTrainedModel:
    """The model itself, without what DDP or DeepSpeed has wrapped around it."""
    # accelerate's own function would import deepspeed in every run, for a second and a warning
    wrapped = isinstance(model, DistributedDataParallel) or (
        is_deepspeed(accelerator) and not isinstance(model, PreTrainedModel)
    )
    inner: Any = model.module if wrapped else model
    return inner


def autocast(accelerator: Accelerator) -> AbstractContextManager[None]:
    """The precision context of a forward pass; FSDP2 casts parameters itself and needs none."""
    if accelerator.is_fsdp2:
        return nullcontext()
    return accelerator.autocast()
