"""From options and the launcher's environment to a checked Accelerator and a prepared model.

`accelerate launch` passes its YAML on as environment variables and turns some mistakes into
silence: a configuration for several devices on a machine without them becomes that many independent
runs. So everything promised is compared with what came out, before and after `prepare`. Nothing
else in the package constructs an Accelerator; data order, the step and checkpoints live elsewhere
and get the Accelerator as an argument.
"""

import os
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
    ProjectConfiguration,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from flame_accel.config import CommConfig, TrainingConfig, UserError
from flame_accel.parallel.exchange import gather_over_ranks

ENGINES = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)
UNSUPPORTED_LAUNCHES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}


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
        training: Precision, accumulation and data-parallel degrees.
        comm: Time-out of the process group.
        run_folder: Where the run writes.
        tensorboard_folder: Folder of TensorBoard's files.
        trackers: Names of Accelerate's trackers.

    Raises:
        UserError: The launch cannot be what it says: devices are missing, options contradict the
            YAML.
    """
    _refuse_unsupported_launch()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    fsdp = _environment_flag("ACCELERATE_USE_FSDP") and world_size > 1
    timeout = timedelta(seconds=comm.init_timeout_seconds)
    on_cpu = not torch.accelerator.is_available() or _environment_flag("ACCELERATE_USE_CPU")
    if on_cpu:
        _start_cpu_state(fsdp, world_size, timeout)
    else:
        _check_local_devices()
    if not fsdp:
        # one process has nothing to shard; FSDP's set-up would only wrap the model
        os.environ.pop("ACCELERATE_USE_FSDP", None)
    accelerator = Accelerator(
        cpu=on_cpu,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=training.gradient_accumulation_steps,
            adjust_scheduler=False,
            sync_with_dataloader=False,
            # FSDP2 without synchronisation keeps whole fp32 gradients on every rank
            sync_each_batch=fsdp,
        ),
        fsdp_plugin=_fsdp_plugin(training) if fsdp else None,
        kwargs_handlers=[
            InitProcessGroupKwargs(backend=None, timeout=timeout),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, bucket_cap_mb=100),
        ],
        project_config=ProjectConfiguration(project_dir=run_folder, logging_dir=tensorboard_folder),
        log_with=list(trackers) or None,
        step_scheduler_with_optimizer=False,
    )
    _check_launch(accelerator, world_size, fsdp)
    _check_degrees(accelerator, training)
    return accelerator


def _environment_flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _refuse_unsupported_launch() -> None:
    for variable, engine in UNSUPPORTED_LAUNCHES.items():
        if _environment_flag(variable):
            raise UserError(
                f"the accelerate configuration asks for {engine}, which this version does not run",
                where=f"{variable}={os.environ[variable]}",
                remedy="launch with accelerate_configs/single.yaml, ddp.yaml or fsdp2.yaml",
            )


def _start_cpu_state(fsdp: bool, world_size: int, timeout: timedelta) -> None:
    """Starts Accelerate's state on CPU, where each process would otherwise run for itself."""
    if world_size == 1:
        PartialState(cpu=True)
        return
    state = PartialState(cpu=True, timeout=timeout)
    if fsdp and state.distributed_type == DistributedType.MULTI_CPU:
        # accelerate promotes only device types to FSDP; over gloo FSDP2 itself works on CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _check_local_devices() -> None:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices = torch.accelerator.device_count()
    if processes > devices:
        raise UserError(
            f"{processes} processes were launched on a machine with {devices} device(s)",
            where="num_processes of the accelerate configuration, or NGPU",
            remedy=f"launch at most {devices} process(es) on each machine",
        )


def _fsdp_plugin(training: TrainingConfig) -> FullyShardedDataParallelPlugin:
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "bf16" and training.mixed_precision_param == "float32":
        raise UserError(
            "mixed_precision: bf16 of the accelerate configuration contradicts "
            "training.mixed_precision_param = float32",
            remedy="set mixed_precision: no there, or training.mixed_precision_param bfloat16",
        )
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        # accelerate's own default reduces gradients in bf16
        reduce_dtype=torch.float32,
    )
    plugin = FullyShardedDataParallelPlugin(
        mixed_precision_policy=policy, cpu_ram_efficient_loading=False
    )
    if plugin.fsdp_version != 2:
        raise UserError(
            f"FSDP version {plugin.fsdp_version} was asked for; only FSDP2 is supported",
            where="fsdp_config of the accelerate configuration",
            remedy="set fsdp_version: 2 (see accelerate_configs/fsdp2.yaml)",
        )
    return plugin


def _check_launch(accelerator: Accelerator, world_size: int, fsdp: bool) -> None:
    if accelerator.num_processes != world_size:
        raise UserError(
            f"{world_size} processes were launched but this one sees {accelerator.num_processes}",
            where="the accelerate configuration",
            remedy="launch with a file of accelerate_configs/, which say what each needs",
        )
    if accelerator.distributed_type not in ENGINES or accelerator.is_fsdp2 != fsdp:
        raise UserError(
            f"the launch gave {accelerator.distributed_type.value}, "
            f"asked for was {'FSDP2' if fsdp else 'DDP or one device'}",
            where="distributed_type of the accelerate configuration",
            remedy="use accelerate_configs/single.yaml, cpu.yaml, ddp.yaml or fsdp2.yaml",
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"mixed precision {accelerator.mixed_precision} is not supported",
            where="mixed_precision of the accelerate configuration",
            remedy="use bf16 or no",
        )


def _check_degrees(accelerator: Accelerator, training: TrainingConfig) -> None:
    """Compares `training.data_parallel_*` with what the launch gave; None means: as launched."""
    world = accelerator.num_processes
    launched = (1, world) if accelerator.is_fsdp2 else (world, 1)
    replicate, shard = training.data_parallel_replicate_degree, training.data_parallel_shard_degree
    if replicate is None and shard is None:
        return
    if shard is None or shard == -1:
        replicate = replicate or 1
        asked = (replicate, world // replicate)
    else:
        asked = (world // shard if replicate is None else replicate, shard)
    if asked != launched:
        raise UserError(
            f"training.data_parallel_replicate_degree x data_parallel_shard_degree asks for "
            f"{asked[0]} x {asked[1]}, the launch gave {launched[0]} x {launched[1]}",
            where="the options and the accelerate configuration",
            remedy="use ddp.yaml to replicate or fsdp2.yaml to shard, "
            "or leave the two options out to take what the launch gives",
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
        RuntimeError: The optimizer does not hold exactly the model's parameters, or replicas
            differ.
    """
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    assert isinstance(prepared_optimizer, AcceleratedOptimizer)
    inner = unwrap(accelerator, prepared)
    # accelerate's wrapper of forward copies every output to fp32, logits included: gigabytes in
    # each step. the step opens `autocast` itself instead
    inner.__dict__.pop("forward", None)
    inner.__dict__.pop("_original_forward", None)
    held = {id(p) for group in prepared_optimizer.param_groups for p in group["params"]}
    owned = {id(p) for p in inner.parameters() if p.requires_grad}
    if held != owned:
        raise RuntimeError(
            f"after prepare the optimizer holds {len(held)} parameters, the model {len(owned)}"
        )
    _check_replicas(accelerator, inner)
    return prepared, prepared_optimizer


def _check_replicas(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Compares the sums of all replicated weights over the ranks."""
    if accelerator.num_processes == 1:
        return
    sums = [p.detach().double().sum() for p in model.parameters() if not isinstance(p, DTensor)]
    if not sums:
        return
    total = torch.stack(sums).sum().reshape(1)
    gathered = gather_over_ranks(accelerator, total)
    if not torch.equal(gathered, gathered[:1].expand_as(gathered)):
        raise RuntimeError(f"initial weights differ between ranks: {gathered.tolist()}")


def unwrap(accelerator: Accelerator, model: torch.nn.Module) -> PreTrainedModel:
    """The model itself, without what an engine has wrapped around it."""
    inner: Any = accelerator.unwrap_model(model)
    return inner


def autocast(accelerator: Accelerator) -> AbstractContextManager[None]:
    """The precision context of a forward pass; FSDP2 casts parameters itself and needs none."""
    if accelerator.is_fsdp2:
        return nullcontext()
    return accelerator.autocast()


def describe_topology(accelerator: Accelerator) -> str:
    """One line: devices, engine and precision as realised."""
    engine = {
        DistributedType.NO: "one process",
        DistributedType.MULTI_CPU: "DDP over gloo",
        DistributedType.MULTI_GPU: "DDP",
        DistributedType.FSDP: "FSDP2",
    }[accelerator.distributed_type]
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    if plugin is not None:
        policy = plugin.mixed_precision_policy
        precision = f"parameters {policy.param_dtype}, reduction {policy.reduce_dtype}"
    else:
        precision = "bf16 autocast" if accelerator.mixed_precision == "bf16" else "fp32"
    return f"{accelerator.num_processes} x {name}, {engine}, {precision.replace('torch.', '')}"
