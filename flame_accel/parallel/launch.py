"""What `accelerate launch` asked for, as far as a process can see it: its environment variables.

The launcher turns its YAML into variables and says nothing when a file and a machine do not fit.
Here they are read, and what would be silently wrong is refused; `topology` weighs them against the
options. Nothing here touches a process group or a device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flame_accel.config import UserError

CONFIGURATION = "the accelerate configuration"
"""Where the values of the launcher come from, in the words of messages."""

# what starts processes but gives them no ranks that torch reads
FOREIGN_STARTERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A launch in the launcher's words; None where it says nothing."""

    engine: Literal["plain", "fsdp2", "deepspeed"]
    """What shards; plain is DDP or one process."""
    world: int
    """Number of processes on all machines."""
    ranked: bool
    """Whether the launcher gave this process a rank, even if there is only one."""
    replicate: int | None
    """Size of the mesh, as the next two; 1 in a YAML says nothing."""
    shard: int | None
    """-1 takes what is left."""
    tensor: int | None
    precision: Literal["bfloat16", "float32"] | None
    offload: bool
    """Whether parameters, or what DeepSpeed may offload, go to CPU memory."""
    zero_stage: int | None
    """Of DeepSpeed; None where a file of its own says it, and without DeepSpeed."""


def read_launch(environment: Mapping[str, str], *, devices: int | None) -> Launch:
    """Reads a launch from a process's environment.

    Args:
        environment: Variables of the process.
        devices: Number of devices on this machine; None trains on the CPU.

    Raises:
        UserError: The launch cannot be what it says, or asks for what is not supported.
    """
    fsdp = is_on(environment, "ACCELERATE_USE_FSDP")
    deepspeed = is_on(environment, "ACCELERATE_USE_DEEPSPEED")
    world = _count_processes(environment, "FSDP" if fsdp else "DeepSpeed" if deepspeed else None)
    _check_devices(environment, world, devices)
    _check_engines(environment)
    _check_compilation(environment)
    if fsdp:
        _check_fsdp_settings(environment)
    meshed = is_on(environment, "ACCELERATE_USE_PARALLELISM_CONFIG")
    return Launch(
        engine="fsdp2" if fsdp else "deepspeed" if deepspeed else "plain",
        world=world,
        ranked="WORLD_SIZE" in environment,
        replicate=_mesh_size(environment, "DP_REPLICATE") if meshed else None,
        shard=_mesh_size(environment, "DP_SHARD") if meshed else None,
        tensor=_mesh_size(environment, "TP") if meshed else None,
        precision=_precision(environment),
        offload=_offloads(environment, fsdp=fsdp, deepspeed=deepspeed),
        zero_stage=_zero_stage(environment) if deepspeed else None,
    )


def is_on(environment: Mapping[str, str], name: str) -> bool:
    """Whether a variable says yes in one of Accelerate's ways."""
    return environment.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t")


def _count_processes(environment: Mapping[str, str], engine: str | None) -> int:
    world = int(environment.get("WORLD_SIZE", "1"))
    if world > 1:
        missing = [name for name in ("RANK", "LOCAL_RANK") if name not in environment]
        if missing:
            raise UserError(
                f"{world} processes are announced, but this one has no {' and no '.join(missing)}",
                where=f"WORLD_SIZE={world} in the environment",
                remedy="start with accelerate launch or torchrun, which give every process its "
                "rank, or unset WORLD_SIZE for a run of one process",
                exit_code=2,
            )
        return world
    if "WORLD_SIZE" not in environment:
        _check_process_count(environment, engine)
    return world


def _check_process_count(environment: Mapping[str, str], engine: str | None) -> None:
    """Refuses to train alone in one of several processes, or where several were wanted."""
    remedy = "start with accelerate launch --config_file accelerate_configs/NAME.yaml"
    if engine is not None:
        raise UserError(
            f"{engine} is asked for, but no launcher gave this process a rank",
            where="the environment, which has no WORLD_SIZE",
            remedy=remedy,
            exit_code=2,
        )
    for name, starter in FOREIGN_STARTERS.items():
        if environment.get(name, "1") not in ("", "1"):
            raise UserError(
                f"{starter} started {environment[name]} processes, which know nothing of each "
                "other: each would train the whole run for itself",
                where=f"{name}={environment[name]} in the environment",
                remedy=f"{remedy}, once per machine",
                exit_code=2,
            )
    # the launcher exports an address where it wants several processes, and starts one of them
    launched = "ACCELERATE_USE_CPU" in environment and "ACCELERATE_MIXED_PRECISION" in environment
    if launched and "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        raise UserError(
            "several processes were asked for, but the launcher started this one alone, as it does "
            "with distributed_type NO or MULTI_CPU, and with use_cpu: true",
            where=CONFIGURATION,
            remedy="for several processes launch ddp.yaml or fsdp2.yaml, which run on CPUs too; "
            "for one, --num_processes 1, with MASTER_ADDR unset",
            exit_code=2,
        )


def _check_devices(environment: Mapping[str, str], world: int, devices: int | None) -> None:
    if devices is None or world == 1:
        return
    local_rank = int(environment["LOCAL_RANK"])
    processes = max(int(environment.get("LOCAL_WORLD_SIZE", "1")), local_rank + 1)
    if processes > devices:
        raise UserError(
            f"{processes} processes were launched on a machine with {devices} device(s)",
            where="num_processes of the accelerate configuration, or NGPU",
            remedy=f"launch at most {devices} process(es) on each machine",
            exit_code=2,
        )


def _check_engines(environment: Mapping[str, str]) -> None:
    if is_on(environment, "ACCELERATE_USE_MEGATRON_LM"):
        raise UserError(
            "Megatron-LM has layers of its own and cannot train fla's",
            where=f"distributed_type: MEGATRON_LM of {CONFIGURATION}",
            remedy="launch ddp.yaml, fsdp2.yaml or hsdp.yaml of accelerate_configs/; tensor "
            "parallelism is training.tensor_parallel_degree",
            exit_code=2,
        )
    for name, key in (("CP", "context"), ("SP", "sequence")):
        variable = f"PARALLELISM_CONFIG_{name}_SIZE"
        if int(environment.get(variable, "1")) > 1:
            raise UserError(
                f"{key} parallelism over {environment[variable]} devices would be silently wrong "
                "for linear attention, whose state would not cross from one device to the next",
                where=f"parallelism_config_{name.lower()}_size of {CONFIGURATION}",
                remedy="set it to 1; sharding the weights (fsdp2.yaml) makes room for long rows",
                exit_code=2,
            )


def _check_compilation(environment: Mapping[str, str]) -> None:
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UserError(
            f"dynamo_backend {backend} would compile the model as a whole, fla's kernels included",
            where=f"dynamo_config of {CONFIGURATION}",
            remedy="remove it and give --training.compile, which compiles block by block",
            exit_code=2,
        )


def _check_fsdp_settings(environment: Mapping[str, str]) -> None:
    """Refuses what the launcher's FSDP would do otherwise than this package, or not at all."""
    where = f"fsdp_config of {CONFIGURATION}"
    version = environment.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"fsdp_version {version} is not supported, only FSDP2 is",
            where=where,
            remedy="set fsdp_version: 2, as in accelerate_configs/fsdp2.yaml",
            exit_code=2,
        )
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    if policy != "TRANSFORMER_BASED_WRAP":
        raise UserError(
            f"fsdp_auto_wrap_policy {policy} does not shard by block: all weights would be "
            "gathered at once, which saves no memory",
            where=where,
            remedy="set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
            exit_code=2,
        )
    if is_on(environment, "FSDP_ACTIVATION_CHECKPOINTING") or is_on(
        environment, "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD"
    ):
        raise UserError(
            "fsdp_activation_checkpointing would recompute beside, or against, "
            "activation_checkpoint.mode",
            where=where,
            remedy="remove it and give --activation_checkpoint.mode full",
            exit_code=2,
        )
    if environment.get("FSDP_IGNORED_MODULES"):
        raise UserError(
            f"fsdp_ignored_modules {environment['FSDP_IGNORED_MODULES']} would train apart on "
            "every process, since nothing sums their gradients",
            where=where,
            remedy="remove it",
            exit_code=2,
        )


def _mesh_size(environment: Mapping[str, str], axis: str) -> int | None:
    size = int(environment.get(f"PARALLELISM_CONFIG_{axis}_SIZE", "1"))
    return None if size == 1 else size


def _precision(environment: Mapping[str, str]) -> Literal["bfloat16", "float32"] | None:
    precision = environment.get("ACCELERATE_MIXED_PRECISION")
    if precision is None:
        return None
    if precision not in ("no", "bf16"):
        hint = "; 8-bit floats are float8.recipe_name" if precision == "fp8" else ""
        raise UserError(
            f"mixed precision {precision} is not supported",
            where=f"mixed_precision of {CONFIGURATION}",
            remedy=f"use bf16 or no{hint}",
            exit_code=2,
        )
    return "bfloat16" if precision == "bf16" else "float32"


def _offloads(environment: Mapping[str, str], *, fsdp: bool, deepspeed: bool) -> bool:
    names = ["FSDP_OFFLOAD_PARAMS"] if fsdp else []
    if deepspeed:
        names = [f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE" for what in ("OPTIMIZER", "PARAM")]
    return any(environment.get(name) == "cpu" or is_on(environment, name) for name in names)


def _zero_stage(environment: Mapping[str, str]) -> int | None:
    if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        return None
    # accelerate's own default is 2; which stages work is known to `deepspeed`
    return int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
