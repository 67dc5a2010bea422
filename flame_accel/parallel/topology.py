"""How a run is distributed over its processes, from the options and the launcher's settings.

A pure function of both, so that every combination can be tested without a process. Neither side
overrides the other: a value that one side gives is taken, values of both must agree. `accelerator`
builds what is resolved here, and `checks` compares the result with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal, NamedTuple

from flame_accel.config import TrainingConfig, UsageError, UserError
from flame_accel.parallel.launch_settings import LAUNCH_CONFIG, LaunchSettings, read_launch_settings

Engine = Literal["single", "ddp", "fsdp2", "tensor", "deepspeed"]
Precision = Literal["bfloat16", "float32"]
DEGREE_NAMES = (
    ("training.data_parallel_replicate_degree", "parallelism_config_dp_replicate_size"),
    ("training.data_parallel_shard_degree", "parallelism_config_dp_shard_size"),
    ("training.tensor_parallel_degree", "parallelism_config_tp_size"),
)
"""The option, and the key of the launch, for each of the `Degrees`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """A resolved topology."""

    engine: Engine
    """What connects the processes; tensor is tensor parallelism and nothing else."""
    world_size: int
    """Number of processes; the product of the degrees."""
    degrees: "Degrees"
    offload: bool
    """Whether parameters, gradients and optimizer states are kept in CPU memory."""
    param_dtype: Precision
    """Dtype of forward and backward; master weights are float32 under every engine."""
    reduce_dtype: Precision
    """Dtype in which gradients are summed over ranks."""


class Degrees(NamedTuple):
    """Sizes of the dimensions of a mesh, from the outermost to that of neighboring ranks."""

    dp_replicate: int
    """Number of replicas of the weights."""
    dp_shard: int
    """Number of ranks that shard a replica and read rows of their own; all under DeepSpeed."""
    tp: int
    """Number of ranks that share each matrix and read the same rows."""

    def __str__(self) -> str:
        return " x ".join(map(str, self))


def resolve_engine_mesh_and_precision(
    training: TrainingConfig, environment: Mapping[str, str], *, num_devices: int | None
) -> Topology:
    """Resolves how a run is distributed over the processes that were launched.

    Args:
        training: Degrees, precision, offloading and accumulation.
        environment: Environment variables of this process, set by `accelerate launch` or torchrun.
        num_devices: Number of devices on this machine; None trains on the CPU.

    Raises:
        UserError: The launch is incomplete or not supported, or an option contradicts it.
    """
    launch = read_launch_settings(environment, num_devices=num_devices)
    _check_accumulation_steps_agree(training, environment)
    if launch.engine == "deepspeed":
        _check_no_degrees_requested(training, launch)
        degrees, engine = Degrees(1, launch.world_size, 1), "deepspeed"
    else:
        degrees = _resolve_degrees(training, launch)
        engine = _choose_torch_engine(degrees, training, launch)
    sharded = engine in ("fsdp2", "deepspeed")
    return Topology(
        engine=engine,
        world_size=launch.world_size,
        degrees=degrees,
        offload=_resolve_cpu_offload(training, launch, sharded),
        param_dtype=_resolve_param_dtype(training, launch, option_applies=sharded),
        reduce_dtype=training.mixed_precision_reduce,
    )


def _choose_torch_engine(
    degrees: Degrees, training: TrainingConfig, launch: LaunchSettings
) -> Engine:
    """The engine of torch, not DeepSpeed, that realizes a mesh."""
    if degrees.dp_shard > 1:
        return "fsdp2"
    if degrees.tp > 1:
        return "tensor"
    if degrees.dp_replicate > 1:
        return "ddp"
    # one process has nothing to shard, but it can keep its weights in CPU memory
    offloads = training.enable_cpu_offload or launch.offload
    return "fsdp2" if launch.engine == "fsdp2" and offloads else "single"


def _resolve_degrees(training: TrainingConfig, launch: LaunchSettings) -> Degrees:
    """The sizes of the mesh; those that neither side gives are derived from the others."""
    requested = _requested_degrees_by_option_and_launch_key(training, launch)
    agreed = [_agreed_degree(requested, *names) for names in DEGREE_NAMES]
    known = Degrees(*(degree or 1 for degree in agreed))
    rest = launch.world_size // prod(known) if launch.world_size % prod(known) == 0 else 1
    shards_rest = -1 in (training.data_parallel_shard_degree, launch.dp_shard)
    if launch.engine == "fsdp2" or shards_rest or known.dp_shard > 1:
        degrees = known._replace(dp_shard=agreed[1] or rest)
    else:
        degrees = known._replace(dp_replicate=agreed[0] or rest)
    _check_degrees_fit_launch(degrees, training, launch)
    return degrees


def _check_degrees_fit_launch(
    degrees: Degrees, training: TrainingConfig, launch: LaunchSettings
) -> None:
    """Checks that the sizes of a mesh fit the launch, and each other."""
    world_size = launch.world_size
    if launch.engine == "fsdp2" and degrees.dp_shard == 1 and world_size > degrees.tp:
        raise _contradiction_error(
            f"training.data_parallel_replicate_degree = {training.data_parallel_replicate_degree} "
            f"with training.data_parallel_shard_degree = {training.data_parallel_shard_degree}, "
            "which leaves nothing to shard,",
            "distributed_type: FSDP",
            "launch ddp.yaml to replicate, or leave the two options out to shard",
        )
    if prod(degrees) != world_size:
        raise _degree_product_error(degrees, world_size)
    if degrees.dp_replicate > 1 and degrees.dp_shard == 1 and degrees.tp > 1:
        raise UsageError(
            f"{degrees.dp_replicate} replicas of a tensor-parallel degree of {degrees.tp}: tensor "
            "parallelism is supported with FSDP2, not with DDP",
            where=f"training.tensor_parallel_degree, and {world_size} processes of {LAUNCH_CONFIG}",
            remedy="add --training.data_parallel_shard_degree -1, or launch fsdp2_tp.yaml, or "
            f"{degrees.tp} processes",
        )


def _requested_degrees_by_option_and_launch_key(
    training: TrainingConfig, launch: LaunchSettings
) -> dict[str, int | None]:
    """The degree that each option and key of the launch gives; None where it leaves it open."""
    tp = training.tensor_parallel_degree
    return {
        "training.data_parallel_replicate_degree": training.data_parallel_replicate_degree,
        "training.data_parallel_shard_degree": training.data_parallel_shard_degree,
        # 1, the default, leaves it to the launch
        "training.tensor_parallel_degree": tp if tp > 1 else None,
        "parallelism_config_dp_replicate_size": launch.dp_replicate,
        "parallelism_config_dp_shard_size": launch.dp_shard,
        "parallelism_config_tp_size": launch.tp,
    }


def _agreed_degree(requested: Mapping[str, int | None], option: str, launch_key: str) -> int | None:
    """The degree that option or launch gives; None where neither does, an error if they differ."""
    unset = (None, -1) if "shard" in option else (None,)
    given = [requested[name] for name in (option, launch_key) if requested[name] not in unset]
    if len(set(given)) > 1:
        raise _contradiction_error(
            f"{option} = {requested[option]}",
            f"{launch_key}: {requested[launch_key]}",
            "give one of them, or both the same (accelerate_configs/fsdp2.yaml leaves "
            f"{launch_key} open)",
        )
    return given[0] if given else None


def _contradiction_error(option: str, setting: str, remedy: str) -> UserError:
    return UsageError(
        f"{option} contradicts {setting} of {LAUNCH_CONFIG}",
        where="options and launch",
        remedy=remedy,
    )


def _degree_product_error(degrees: Degrees, world_size: int) -> UserError:
    """The error about degrees whose product is another number of processes, with some that fit."""
    fitting = [
        Degrees(*sizes)
        for sizes in product(_divisors(world_size), repeat=3)
        if prod(sizes) == world_size and not (sizes[0] > 1 and sizes[1] == 1 and sizes[2] > 1)
    ]
    # those first that keep most of what was asked for
    fitting.sort(key=lambda other: sum(a != b for a, b in zip(degrees, other, strict=True)))
    shown = ", ".join(map(str, fitting[:6]))
    return UsageError(
        f"degrees replicate x shard x tensor of {degrees} make {prod(degrees)} processes, "
        f"{world_size} were launched",
        where="training.data_parallel_replicate_degree, training.data_parallel_shard_degree, "
        f"training.tensor_parallel_degree and parallelism_config of {LAUNCH_CONFIG}",
        remedy=f"launch {prod(degrees)} processes, or use one of {shown}",
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _check_no_degrees_requested(training: TrainingConfig, deepspeed_launch: LaunchSettings) -> None:
    for name, degree in _requested_degrees_by_option_and_launch_key(
        training, deepspeed_launch
    ).items():
        if degree is not None:
            raise _contradiction_error(
                f"{name} = {degree}",
                "distributed_type: DEEPSPEED, which shards over all processes by its zero_stage,",
                "remove it, or launch fsdp2.yaml, hsdp.yaml or fsdp2_tp.yaml",
            )


def _resolve_cpu_offload(training: TrainingConfig, launch: LaunchSettings, sharded: bool) -> bool:
    if training.enable_cpu_offload and not sharded:
        raise UsageError(
            "nothing is sharded, and only sharded weights can be kept in CPU memory",
            where="training.enable_cpu_offload",
            remedy="launch fsdp2_offload.yaml, or add --training.data_parallel_shard_degree -1 to "
            "a launch of several processes",
        )
    return sharded and (training.enable_cpu_offload or launch.offload)


def _resolve_param_dtype(
    training: TrainingConfig, launch: LaunchSettings, *, option_applies: bool
) -> Precision:
    asked = training.mixed_precision_param
    if not option_applies:
        return launch.precision or "float32"
    if launch.precision is None:
        return asked or "bfloat16"
    if asked is not None and asked != launch.precision:
        setting = "bf16" if launch.precision == "bfloat16" else "no"
        raise _contradiction_error(
            f"training.mixed_precision_param = {asked}",
            f"mixed_precision: {setting}",
            "remove the option, or change the setting (--mixed_precision of accelerate launch)",
        )
    return launch.precision


def _check_accumulation_steps_agree(
    training: TrainingConfig, environment: Mapping[str, str]
) -> None:
    launched = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    asked = training.gradient_accumulation_steps
    if launched not in ("auto", str(asked)):
        raise _contradiction_error(
            f"training.gradient_accumulation_steps = {asked}",
            f"gradient_accumulation_steps: {launched}",
            "set it to auto there, which takes the option",
        )
