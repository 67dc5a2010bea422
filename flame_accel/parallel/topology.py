"""How a run is spread over its processes: options weighed against what the launcher asked for.

A pure function of both, so that every combination can be tested without a process. Neither side
has the last word: what only one says holds, what both say must agree. `accelerator` builds what
is settled here, and compares what came out with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal, NamedTuple

from flame_accel.config import TrainingConfig, UserError
from flame_accel.parallel.launch import CONFIGURATION, Launch, read_launch

Engine = Literal["single", "ddp", "fsdp2", "tensor", "deepspeed"]
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """A settled layout; `replicate * shard * tensor` is the number of processes."""

    engine: Engine
    """What holds the processes together; tensor is tensor parallelism and nothing else."""
    world: int
    """Number of processes."""
    replicate: int
    """Number of copies of the weights."""
    shard: int
    """Number of ranks that share a copy by rows of data; under DeepSpeed all."""
    tensor: int
    """Number of ranks that share each matrix and read the same rows."""
    zero_stage: int | None
    """Of DeepSpeed; None where a file of its own says it, and without DeepSpeed."""
    offload: bool
    """Whether parameters, gradients and optimizer states are kept in CPU memory."""
    param_dtype: Precision
    """Type in which forward and backward compute; masters are float32 under every engine."""
    reduce_dtype: Precision
    """Type in which gradients are summed over ranks."""


class Degrees(NamedTuple):
    """Sizes of the axes of a mesh, the one of neighbours last."""

    replicate: int
    shard: int
    tensor: int

    def __str__(self) -> str:
        return " x ".join(map(str, self))


def resolve_topology(
    training: TrainingConfig, environment: Mapping[str, str], *, devices: int | None
) -> Topology:
    """Settles how a run is spread over the processes that were launched.

    Args:
        training: Degrees, precision, offloading and accumulation.
        environment: Variables of this process, as `accelerate launch` or torchrun set them.
        devices: Number of devices on this machine; None trains on the CPU.

    Raises:
        UserError: The launch is broken or not supported, or an option contradicts it.
    """
    launch = read_launch(environment, devices=devices)
    _check_accumulation(training, environment)
    if launch.engine == "deepspeed":
        _check_degrees_under_deepspeed(training, launch)
        degrees, engine = Degrees(1, launch.world, 1), "deepspeed"
    else:
        degrees = _settle_degrees(training, launch)
        engine = _choose_engine(degrees, training, launch)
    sharded = engine in ("fsdp2", "deepspeed")
    return Topology(
        engine=engine,
        world=launch.world,
        replicate=degrees.replicate,
        shard=degrees.shard,
        tensor=degrees.tensor,
        zero_stage=launch.zero_stage,
        offload=_settle_offload(training, launch, sharded),
        param_dtype=_settle_precision(training, launch, sharded),
        reduce_dtype=training.mixed_precision_reduce,
    )


def _choose_engine(degrees: Degrees, training: TrainingConfig, launch: Launch) -> Engine:
    if degrees.shard > 1:
        return "fsdp2"
    if degrees.tensor > 1:
        return "tensor"
    if degrees.replicate > 1:
        return "ddp"
    # one process has nothing to shard, but it can keep its weights in CPU memory
    offloads = training.enable_cpu_offload or launch.offload
    return "fsdp2" if launch.engine == "fsdp2" and offloads else "single"


def _settle_degrees(training: TrainingConfig, launch: Launch) -> Degrees:
    world = launch.world
    asked = training.data_parallel_shard_degree
    tensor = _agree(
        "training.tensor_parallel_degree",
        # 1, the default, leaves it to the launch
        training.tensor_parallel_degree if training.tensor_parallel_degree > 1 else None,
        "parallelism_config_tp_size",
        launch.tensor,
    )
    replicate = _agree(
        "training.data_parallel_replicate_degree",
        training.data_parallel_replicate_degree,
        "parallelism_config_dp_replicate_size",
        launch.replicate,
    )
    shard = _agree(
        "training.data_parallel_shard_degree",
        None if asked == -1 else asked,
        "parallelism_config_dp_shard_size",
        None if launch.shard == -1 else launch.shard,
    )
    shards = launch.engine == "fsdp2" or asked == -1 or launch.shard == -1 or (shard or 1) > 1
    known = Degrees(replicate or 1, shard or 1, tensor or 1)
    rest = world // prod(known) if world % prod(known) == 0 else 1
    if shards:
        degrees = known._replace(shard=shard or rest)
    else:
        degrees = known._replace(replicate=replicate or rest)
    if launch.engine == "fsdp2" and degrees.shard == 1 and world > degrees.tensor:
        raise _contradiction(
            f"training.data_parallel_replicate_degree = {training.data_parallel_replicate_degree} "
            f"with training.data_parallel_shard_degree = {asked}, which leaves nothing to shard,",
            "distributed_type: FSDP",
            "launch ddp.yaml to replicate, or leave the two options out to shard",
        )
    if prod(degrees) != world:
        raise _wrong_product(degrees, world)
    if degrees.replicate > 1 and degrees.shard == 1 and degrees.tensor > 1:
        raise UserError(
            f"{degrees.replicate} replicas of matrices that are split {degrees.tensor} times: "
            "tensor parallelism goes with sharding, not with DDP",
            where=f"training.tensor_parallel_degree, and {world} processes of {CONFIGURATION}",
            remedy="add --training.data_parallel_shard_degree -1, or launch fsdp2_tp.yaml, or "
            f"{degrees.tensor} processes",
            exit_code=2,
        )
    return degrees


def _agree(option: str, asked: int | None, key: str, launched: int | None) -> int | None:
    """What one of two sides says, or both."""
    if asked is not None and launched is not None and asked != launched:
        raise _contradiction(
            f"{option} = {asked}",
            f"{key}: {launched}",
            f"give one of them, or both the same (accelerate_configs/fsdp2.yaml leaves {key} open)",
        )
    return launched if asked is None else asked


def _contradiction(option: str, setting: str, remedy: str) -> UserError:
    return UserError(
        f"{option} contradicts {setting} of {CONFIGURATION}",
        where="options and launch",
        remedy=remedy,
        exit_code=2,
    )


def _wrong_product(degrees: Degrees, world: int) -> UserError:
    fitting = [
        Degrees(*sizes)
        for sizes in product(_divisors(world), repeat=3)
        if prod(sizes) == world and not (sizes[0] > 1 and sizes[1] == 1 and sizes[2] > 1)
    ]
    # those first that keep most of what was asked for
    fitting.sort(key=lambda other: sum(a != b for a, b in zip(degrees, other, strict=True)))
    shown = ", ".join(map(str, fitting[:6]))
    return UserError(
        f"degrees replicate x shard x tensor of {degrees} make {prod(degrees)} processes, "
        f"{world} were launched",
        where="training.data_parallel_replicate_degree, training.data_parallel_shard_degree, "
        f"training.tensor_parallel_degree and parallelism_config of {CONFIGURATION}",
        remedy=f"launch {prod(degrees)} processes, or use one of {shown}",
        exit_code=2,
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _check_degrees_under_deepspeed(training: TrainingConfig, launch: Launch) -> None:
    asked = {
        "training.data_parallel_replicate_degree": training.data_parallel_replicate_degree,
        "training.data_parallel_shard_degree": training.data_parallel_shard_degree,
        "training.tensor_parallel_degree": (
            training.tensor_parallel_degree if training.tensor_parallel_degree > 1 else None
        ),
        "parallelism_config_dp_replicate_size": launch.replicate,
        "parallelism_config_dp_shard_size": launch.shard,
        "parallelism_config_tp_size": launch.tensor,
    }
    for name, degree in asked.items():
        if degree is not None:
            raise _contradiction(
                f"{name} = {degree}",
                "distributed_type: DEEPSPEED, which shards over all processes by its zero_stage,",
                "remove it, or launch fsdp2.yaml, hsdp.yaml or fsdp2_tp.yaml",
            )


def _settle_offload(training: TrainingConfig, launch: Launch, sharded: bool) -> bool:
    if training.enable_cpu_offload and not sharded:
        raise UserError(
            "nothing is sharded, and only sharded weights can be kept in CPU memory",
            where="training.enable_cpu_offload",
            remedy="launch fsdp2_offload.yaml, or add --training.data_parallel_shard_degree -1 to "
            "a launch of several processes",
            exit_code=2,
        )
    return sharded and (training.enable_cpu_offload or launch.offload)


def _settle_precision(training: TrainingConfig, launch: Launch, sharded: bool) -> Precision:
    asked = training.mixed_precision_param
    if not sharded:
        return launch.precision or "float32"
    if launch.precision is None:
        return asked or "bfloat16"
    if asked is not None and asked != launch.precision:
        setting = "bf16" if launch.precision == "bfloat16" else "no"
        raise _contradiction(
            f"training.mixed_precision_param = {asked}",
            f"mixed_precision: {setting}",
            "remove the option, or change the setting (--mixed_precision of accelerate launch)",
        )
    return launch.precision


def _check_accumulation(training: TrainingConfig, environment: Mapping[str, str]) -> None:
    launched = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    asked = training.gradient_accumulation_steps
    if launched not in ("auto", str(asked)):
        raise _contradiction(
            f"training.gradient_accumulation_steps = {asked}",
            f"gradient_accumulation_steps: {launched}",
            "set it to auto there, which takes the option",
        )
