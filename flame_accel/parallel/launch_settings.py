"""What `accelerate launch` asked for, read from the environment variables of a process.

The launcher turns its YAML into variables and is silent when a file and a machine do not fit. Here
they are read, and what would be silently wrong is refused; `topology` combines them with the
options. Nothing here touches a process group or a device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flame_accel.config import UsageError

LAUNCH_CONFIG = "the accelerate configuration"
"""Where the values of the launcher come from, in the words of messages."""

# set by programs that start processes but give them no ranks that torch reads
SCHEDULER_VARIABLES = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchSettings:
    """What the launcher asked for; None where it leaves a value open."""

    engine: Literal["plain", "fsdp2", "deepspeed"]
    """What shards the weights; plain is DDP or a single process."""
    world_size: int
    """Number of processes on all machines."""
    dp_replicate: int | None
    """Number of replicas in the mesh. For all three sizes, 1 in a YAML leaves the value open."""
    dp_shard: int | None
    """Number of ranks that shard a replica; -1 takes those that are left."""
    tp: int | None
    """Number of ranks that share each matrix."""
    precision: Literal["bfloat16", "float32"] | None
    """Dtype of forward and backward, from mixed_precision."""
    offload: bool
    """Whether parameters, or what DeepSpeed may offload, are kept in CPU memory."""


def read_launch_settings(
    environment: Mapping[str, str], *, num_devices: int | None
) -> LaunchSettings:
    """Reads and checks what the launcher asked for.

    Args:
        environment: Environment variables of the process.
        num_devices: Number of devices on this machine; None trains on the CPU.

    Raises:
        UserError: The launch is incomplete, does not fit the machine, or is not supported.
    """
    fsdp = is_variable_true(environment, "ACCELERATE_USE_FSDP")
    deepspeed = is_variable_true(environment, "ACCELERATE_USE_DEEPSPEED")
    engine_name = "FSDP" if fsdp else "DeepSpeed" if deepspeed else None
    world_size = _read_and_check_world_size(environment, engine_name)
    _check_enough_devices(environment, world_size, num_devices)
    _check_no_megatron_lm(environment)
    _check_no_context_or_sequence_parallelism(environment)
    _check_no_dynamo_backend(environment)
    if fsdp:
        _check_fsdp_settings(environment)
    has_mesh = is_variable_true(environment, "ACCELERATE_USE_PARALLELISM_CONFIG")
    return LaunchSettings(
        engine="fsdp2" if fsdp else "deepspeed" if deepspeed else "plain",
        world_size=world_size,
        dp_replicate=_read_mesh_size_or_none_if_one(environment, "DP_REPLICATE")
        if has_mesh
        else None,
        dp_shard=_read_mesh_size_or_none_if_one(environment, "DP_SHARD") if has_mesh else None,
        tp=_read_mesh_size_or_none_if_one(environment, "TP") if has_mesh else None,
        precision=_read_precision(environment),
        offload=_is_cpu_offload_requested(environment, fsdp=fsdp, deepspeed=deepspeed),
    )


def is_variable_true(environment: Mapping[str, str], name: str) -> bool:
    """Whether a variable is set to one of the values that Accelerate takes for true."""
    return environment.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t")


def _read_and_check_world_size(environment: Mapping[str, str], engine_name: str | None) -> int:
    """The number of processes of the run, after checking that they have been given ranks."""
    world_size = int(environment.get("WORLD_SIZE", "1"))
    if world_size > 1:
        missing = [name for name in ("RANK", "LOCAL_RANK") if name not in environment]
        if missing:
            raise UsageError(
                f"WORLD_SIZE says {world_size} processes, but this one has no "
                f"{' and no '.join(missing)}",
                where=f"WORLD_SIZE={world_size} in the environment",
                remedy="start with accelerate launch or torchrun, which give every process its "
                "rank, or unset WORLD_SIZE for a run of one process",
            )
        return world_size
    if "WORLD_SIZE" not in environment:
        _check_single_process_is_intended(environment, engine_name)
    return world_size


def _check_single_process_is_intended(
    environment: Mapping[str, str], engine_name: str | None
) -> None:
    """Checks that a process without a rank is meant to train alone."""
    remedy = "start with accelerate launch --config_file accelerate_configs/NAME.yaml"
    if engine_name is not None:
        raise UsageError(
            f"{engine_name} is asked for, but no launcher gave this process a rank",
            where=f"ACCELERATE_USE_{engine_name.upper()} in the environment, without WORLD_SIZE",
            remedy=f"{remedy}, or unset it if it is left over from another launch",
        )
    for name, starter in SCHEDULER_VARIABLES.items():
        if environment.get(name, "1") not in ("", "1"):
            raise UsageError(
                f"{starter} started {environment[name]} processes without ranks: each would train "
                "the whole run by itself",
                where=f"{name}={environment[name]} in the environment",
                remedy=f"{remedy}, once per machine",
            )
    # the launcher exports an address where it wants several processes, and starts one of them
    launched = "ACCELERATE_USE_CPU" in environment and "ACCELERATE_MIXED_PRECISION" in environment
    if launched and "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        raise UsageError(
            "several processes were asked for, but the launcher started this one alone, as it does "
            "with distributed_type NO or MULTI_CPU, and with use_cpu: true",
            where=LAUNCH_CONFIG,
            remedy="for several processes launch ddp.yaml or fsdp2.yaml, which run on CPUs too; "
            "for one, --num_processes 1, with MASTER_ADDR unset",
        )


def _check_enough_devices(
    environment: Mapping[str, str], world_size: int, num_devices: int | None
) -> None:
    """Checks that every process of this machine has a device of its own."""
    if num_devices is None or world_size == 1:
        return
    local_rank = int(environment["LOCAL_RANK"])
    processes = max(int(environment.get("LOCAL_WORLD_SIZE", "1")), local_rank + 1)
    if processes > num_devices:
        raise UsageError(
            f"{processes} processes were launched on a machine with {num_devices} device(s)",
            where="num_processes of the accelerate configuration, or NGPU",
            remedy=f"launch at most {num_devices} process(es) on each machine",
        )


def _check_no_megatron_lm(environment: Mapping[str, str]) -> None:
    if is_variable_true(environment, "ACCELERATE_USE_MEGATRON_LM"):
        raise UsageError(
            "Megatron-LM has its own layers and cannot train fla's",
            where=f"distributed_type: MEGATRON_LM of {LAUNCH_CONFIG}",
            remedy="launch ddp.yaml, fsdp2.yaml or hsdp.yaml of accelerate_configs/; tensor "
            "parallelism is training.tensor_parallel_degree",
        )


def _check_no_context_or_sequence_parallelism(environment: Mapping[str, str]) -> None:
    for name, key in (("CP", "context"), ("SP", "sequence")):
        variable = f"PARALLELISM_CONFIG_{name}_SIZE"
        if int(environment.get(variable, "1")) > 1:
            raise UsageError(
                f"{key} parallelism over {environment[variable]} devices would be silently wrong "
                "for linear attention, whose state would not be passed from device to device",
                where=f"parallelism_config_{name.lower()}_size of {LAUNCH_CONFIG}",
                remedy="set it to 1; sharding the weights (fsdp2.yaml) makes room for long rows",
            )


def _check_no_dynamo_backend(environment: Mapping[str, str]) -> None:
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UsageError(
            f"dynamo_backend {backend} would compile the model as a whole, fla's kernels included",
            where=f"dynamo_config of {LAUNCH_CONFIG}",
            remedy="remove it and give --training.compile, which compiles block by block",
        )


def _check_fsdp_settings(environment: Mapping[str, str]) -> None:
    """Checks the settings of fsdp_config that this package does not support or does itself."""
    where = f"fsdp_config of {LAUNCH_CONFIG}"
    version = environment.get("FSDP_VERSION", "1")
    if version != "2":
        raise UsageError(
            f"fsdp_version {version} is not supported, only FSDP2 is",
            where=where,
            remedy="set fsdp_version: 2, as in accelerate_configs/fsdp2.yaml",
        )
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    if policy != "TRANSFORMER_BASED_WRAP":
        raise UsageError(
            f"fsdp_auto_wrap_policy {policy} does not shard by block: all weights would be "
            "gathered at once, which saves no memory",
            where=where,
            remedy="set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
        )
    if is_variable_true(environment, "FSDP_ACTIVATION_CHECKPOINTING") or is_variable_true(
        environment, "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD"
    ):
        raise UsageError(
            "fsdp_activation_checkpointing would recompute in addition to "
            "activation_checkpoint.mode",
            where=where,
            remedy="remove it and give --activation_checkpoint.mode full",
        )
    if environment.get("FSDP_IGNORED_MODULES"):
        raise UsageError(
            f"fsdp_ignored_modules {environment['FSDP_IGNORED_MODULES']} would diverge between "
            "processes, since nothing sums their gradients",
            where=where,
            remedy="remove it",
        )


def _read_mesh_size_or_none_if_one(environment: Mapping[str, str], dim: str) -> int | None:
    size = int(environment.get(f"PARALLELISM_CONFIG_{dim}_SIZE", "1"))
    return None if size == 1 else size


def _read_precision(environment: Mapping[str, str]) -> Literal["bfloat16", "float32"] | None:
    precision = environment.get("ACCELERATE_MIXED_PRECISION")
    if precision is None:
        return None
    if precision not in ("no", "bf16"):
        hint = "; 8-bit floats are float8.recipe_name" if precision == "fp8" else ""
        raise UsageError(
            f"mixed precision {precision} is not supported",
            where=f"mixed_precision of {LAUNCH_CONFIG}",
            remedy=f"use bf16 or no{hint}",
        )
    return "bfloat16" if precision == "bf16" else "float32"


def _is_cpu_offload_requested(
    environment: Mapping[str, str], *, fsdp: bool, deepspeed: bool
) -> bool:
    names = ["FSDP_OFFLOAD_PARAMS"] if fsdp else []
    if deepspeed:
        names = [f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE" for what in ("OPTIMIZER", "PARAM")]
    return any(
        environment.get(name) == "cpu" or is_variable_true(environment, name) for name in names
    )
