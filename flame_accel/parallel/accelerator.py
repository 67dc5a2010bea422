"""From options and the launcher's environment to a checked Accelerator.

`accelerate launch` passes its YAML on as environment variables and is silent about some mistakes: a
configuration for several devices on a machine without them becomes that many independent runs. So
the topology is resolved first (`topology`), and what Accelerate made of it is compared with it
(`checks`). Nothing else in the package constructs an Accelerator; everybody else gets it as an
argument. Preparing model and optimizer with it is `prepare`.
"""

import os
import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator
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

from flame_accel.config import CommConfig, TrainingConfig
from flame_accel.parallel.checks import check_accelerator_matches_topology
from flame_accel.parallel.deepspeed_config import (
    LAUNCH_FLAG,
    build_deepspeed_plugin,
    unset_transformers_deepspeed_config,
)
from flame_accel.parallel.launch_settings import is_variable_true
from flame_accel.parallel.restarts import init_method_if_restarted
from flame_accel.parallel.timeouts import enable_flight_recorder
from flame_accel.parallel.topology import Topology, resolve_engine_mesh_and_precision


def build_accelerator(
    training: TrainingConfig,
    comm: CommConfig,
    *,
    run_folder: str,
) -> Accelerator:
    """Builds the run's Accelerator for the devices and processes that the launcher provided.

    Args:
        training: Precision, accumulation and the degrees of parallelism.
        comm: Timeouts and the flight recorder of collectives.
        run_folder: Folder in which the run writes.

    Raises:
        UserError: Devices are missing, the launch is not supported, or options contradict its
            YAML.
    """
    on_cpu = not torch.accelerator.is_available() or is_variable_true(
        os.environ, "ACCELERATE_USE_CPU"
    )
    num_devices = None if on_cpu else torch.accelerator.device_count()
    topology = resolve_engine_mesh_and_precision(training, os.environ, num_devices=num_devices)
    _clear_contradicted_launch_variables_in_environ(topology, on_cpu)
    bf16 = topology.param_dtype == "bfloat16"
    # deepspeed looks for its device when it is imported
    zero = None
    if topology.engine == "deepspeed":
        zero = build_deepspeed_plugin(training, bf16=bf16, on_cpu=on_cpu)
    if topology.world_size > 1:
        enable_flight_recorder(comm, run_folder)
    timeout = timedelta(seconds=comm.init_timeout_seconds)
    if on_cpu:
        _init_accelerate_state_on_cpu(topology, timeout)
    accelerator = Accelerator(
        # accelerate drops DeepSpeed where it is told to run on a CPU
        cpu=on_cpu and zero is None,
        mixed_precision="bf16" if bf16 else "no",
        deepspeed_plugin=zero,
        fsdp_plugin=_build_fsdp_plugin(topology, on_cpu) if topology.engine == "fsdp2" else None,
        parallelism_config=_build_parallelism_config(topology),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=training.gradient_accumulation_steps,
            adjust_scheduler=False,
            sync_with_dataloader=False,
            # FSDP2 without synchronization keeps full fp32 gradients on every rank
            sync_each_batch=topology.engine == "fsdp2",
        ),
        kwargs_handlers=[
            InitProcessGroupKwargs(
                backend=_nccl_and_gloo_backend_if_offloading(topology, on_cpu),
                init_method=init_method_if_restarted(),
                timeout=timeout,
            ),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, bucket_cap_mb=100),
        ],
        project_config=ProjectConfiguration(project_dir=run_folder),
        step_scheduler_with_optimizer=False,
    )
    if zero is not None:
        unset_transformers_deepspeed_config()
    check_accelerator_matches_topology(accelerator, topology)
    return accelerator


def _clear_contradicted_launch_variables_in_environ(topology: Topology, on_cpu: bool) -> None:
    """Removes what the launcher exported and the resolved topology contradicts, in os.environ.

    Accelerate and transformers read these variables themselves, whatever arguments they get.
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
    # every rank builds the full model from the seed; with it, ranks other than 0 would load none
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def _init_accelerate_state_on_cpu(topology: Topology, timeout: timedelta) -> None:
    """Initializes Accelerate's state on CPUs, where each process would otherwise run by itself."""
    if topology.engine == "single":
        PartialState(cpu=True)
        return
    state = PartialState(cpu=True, timeout=timeout, init_method=init_method_if_restarted())
    if topology.engine in ("fsdp2", "tensor") and (
        state.distributed_type == DistributedType.MULTI_CPU
    ):
        # accelerate shards and makes meshes only for devices; over gloo both work on a CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _nccl_and_gloo_backend_if_offloading(topology: Topology, on_cpu: bool) -> str | None:
    """The backends of the process group; None leaves the choice to Accelerate."""
    offloads = topology.engine == "fsdp2" and topology.offload
    if on_cpu or not offloads or not torch.cuda.is_available():
        return None
    # norms of offloaded gradients are summed over ranks in CPU memory
    return "cuda:nccl,cpu:gloo"


def _build_fsdp_plugin(topology: Topology, on_cpu: bool) -> FullyShardedDataParallelPlugin:
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


def _build_parallelism_config(topology: Topology) -> ParallelismConfig | None:
    """Sizes of a mesh of several dimensions; None where a single one is enough."""
    degrees = topology.degrees
    hybrid = degrees.dp_replicate > 1 and degrees.dp_shard > 1
    if not hybrid and degrees.tp == 1:
        return None
    # accelerate's way to name joined dimensions; the run could not do anything about it
    warnings.filterwarnings("ignore", message="Slicing a flattened dim")
    return ParallelismConfig(
        dp_replicate_size=degrees.dp_replicate,
        dp_shard_size=degrees.dp_shard,
        tp_size=degrees.tp,
        # from the environment otherwise
        cp_size=1,
        sp_size=1,
    )
