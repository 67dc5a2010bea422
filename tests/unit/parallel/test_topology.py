"""Laws of settling a layout from options and a launch: agreement, completion, refusal.

Pure: no process is started here; `test_accelerate_traps` and `test_engines` start some.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame_accel.config import TrainingConfig, UserError
from flame_accel.parallel.topology import Topology, resolve_topology

DEFAULTS = TrainingConfig()
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
OPTIONS = {
    "replicate": "data_parallel_replicate_degree",
    "shard": "data_parallel_shard_degree",
    "tensor": "tensor_parallel_degree",
}
VARIABLES = {"replicate": "DP_REPLICATE", "shard": "DP_SHARD", "tensor": "TP"}


def launched(world: int, *engines: dict[str, str], **sizes: int) -> dict[str, str]:
    """The environment of a launch; sizes are those of the YAML's parallelism_config."""
    environment = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "WORLD_SIZE": str(world),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": str(world),
    }
    for engine in engines:
        environment |= engine
    if sizes:
        environment["ACCELERATE_USE_PARALLELISM_CONFIG"] = "true"
        for axis, variable in VARIABLES.items():
            environment[f"PARALLELISM_CONFIG_{variable}_SIZE"] = str(sizes.get(axis, 1))
    return environment


def settle(environment: dict[str, str], *, devices: int | None = None, **options: Any) -> Topology:
    training = replace(DEFAULTS, **options)
    return resolve_topology(training, environment, devices=devices)


def degrees(topology: Topology) -> tuple[int, int, int]:
    return topology.dp_replicate, topology.dp_shard, topology.tp


def refusal(environment: dict[str, str], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        settle(environment, **options)
    assert caught.value.exit_code == 2
    assert caught.value.where and caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize(
    ("environment", "options", "engine", "layout"),
    [
        ({}, {}, "single", (1, 1, 1)),
        ({}, {"data_parallel_shard_degree": -1}, "single", (1, 1, 1)),
        (launched(1), {}, "single", (1, 1, 1)),
        (launched(1, FSDP2), {}, "single", (1, 1, 1)),
        (launched(1, DEEPSPEED), {}, "deepspeed", (1, 1, 1)),
        (launched(4), {}, "ddp", (4, 1, 1)),
        (launched(4), {"data_parallel_replicate_degree": 4}, "ddp", (4, 1, 1)),
        (launched(4), {"data_parallel_shard_degree": 1}, "ddp", (4, 1, 1)),
        (
            launched(4),
            {"data_parallel_replicate_degree": 4, "data_parallel_shard_degree": -1},
            "ddp",
            (4, 1, 1),
        ),
        (launched(4), {"data_parallel_shard_degree": -1}, "fsdp2", (1, 4, 1)),
        (launched(4), {"data_parallel_shard_degree": 4}, "fsdp2", (1, 4, 1)),
        (
            launched(8),
            {"data_parallel_shard_degree": -1, "tensor_parallel_degree": 2},
            "fsdp2",
            (1, 4, 2),
        ),
        (launched(4, FSDP2), {}, "fsdp2", (1, 4, 1)),
        (launched(4, FSDP2), {"data_parallel_replicate_degree": 2}, "fsdp2", (2, 2, 1)),
        (launched(8, FSDP2, replicate=2, shard=-1), {}, "fsdp2", (2, 4, 1)),
        (launched(8, FSDP2, shard=-1, tensor=2), {}, "fsdp2", (1, 4, 2)),
        (launched(8, replicate=2, shard=4), {}, "fsdp2", (2, 4, 1)),
        (launched(2), {"tensor_parallel_degree": 2}, "tensor", (1, 1, 2)),
        (launched(2, tensor=2), {}, "tensor", (1, 1, 2)),
        (launched(2, FSDP2), {"tensor_parallel_degree": 2}, "tensor", (1, 1, 2)),
        (launched(4, DEEPSPEED), {}, "deepspeed", (1, 4, 1)),
    ],
)
def test_what_one_side_says_holds(environment, options, engine, layout):
    topology = settle(environment, **options)
    assert (topology.engine, degrees(topology)) == (engine, layout)
    assert topology.world_size == math.prod(layout)


sizes = st.integers(1, 6)
speakers = st.sampled_from(["option", "yaml", "both"])


@pytest.mark.covers_option("training.data_parallel_shard_degree")
@given(layout=st.tuples(sizes, st.integers(2, 6), sizes), said_by=st.tuples(*[speakers] * 3))
def test_it_does_not_matter_who_says_a_degree(layout, said_by):
    options, yaml = {}, {}
    for axis, size, speaker in zip(OPTIONS, layout, said_by, strict=True):
        if speaker in ("option", "both"):
            options[OPTIONS[axis]] = size
        if speaker in ("yaml", "both"):
            yaml[axis] = size
    for engine in (FSDP2, {}):
        topology = settle(launched(math.prod(layout), engine, **yaml), **options)
        assert degrees(topology) == layout
        assert topology.engine == "fsdp2"


@given(
    layout=st.tuples(sizes, st.integers(2, 6), sizes),
    rest=st.sampled_from([{"option": -1}, {"yaml": -1}, {"option": -1, "yaml": -1}, {}]),
)
def test_the_rest_is_sharded(layout, rest):
    replicate, _, tensor = layout
    options = {"data_parallel_replicate_degree": replicate, "tensor_parallel_degree": tensor}
    if "option" in rest:
        options["data_parallel_shard_degree"] = -1
    environment = launched(math.prod(layout), FSDP2, **({"shard": -1} if "yaml" in rest else {}))
    assert degrees(settle(environment, **options)) == layout


@given(
    world=st.integers(1, 24),
    engine=st.sampled_from([{}, FSDP2]),
    replicate=st.none() | st.integers(1, 5),
    shard=st.none() | st.just(-1) | st.integers(1, 5),
    tensor=st.integers(1, 5),
)
def test_a_layout_covers_all_processes_and_says_what_was_asked_or_is_refused(
    world, engine, replicate, shard, tensor
):
    options = {
        "data_parallel_replicate_degree": replicate,
        "data_parallel_shard_degree": shard,
        "tensor_parallel_degree": tensor,
    }
    try:
        topology = settle(launched(world, engine), **options)
    except UserError as error:
        assert error.remedy
        return
    assert math.prod(degrees(topology)) == topology.world_size == world
    assert replicate in (None, topology.dp_replicate)
    assert shard in (None, -1, topology.dp_shard)
    assert topology.tp == tensor
    assert (topology.engine == "fsdp2") == (topology.dp_shard > 1)
    assert (topology.engine == "ddp") == (topology.dp_replicate > 1 and topology.dp_shard == 1)


@pytest.mark.parametrize(
    ("environment", "options", "both"),
    [
        (
            launched(8, FSDP2, shard=4, replicate=2),
            {"data_parallel_shard_degree": 2},
            ["training.data_parallel_shard_degree = 2", "parallelism_config_dp_shard_size: 4"],
        ),
        (
            launched(8, FSDP2, shard=-1, replicate=2),
            {"data_parallel_replicate_degree": 4},
            [
                "training.data_parallel_replicate_degree = 4",
                "parallelism_config_dp_replicate_size: 2",
            ],
        ),
        (
            launched(8, tensor=8),
            {"tensor_parallel_degree": 4},
            ["training.tensor_parallel_degree = 4", "parallelism_config_tp_size: 8"],
        ),
        (
            launched(4, FSDP2),
            {"data_parallel_shard_degree": 1},
            ["training.data_parallel_shard_degree = 1", "distributed_type: FSDP"],
        ),
        (
            launched(4, FSDP2),
            {"data_parallel_replicate_degree": 4},
            ["training.data_parallel_replicate_degree = 4", "distributed_type: FSDP"],
        ),
        (
            launched(4, DEEPSPEED),
            {"data_parallel_shard_degree": 4},
            ["training.data_parallel_shard_degree = 4", "distributed_type: DEEPSPEED"],
        ),
        (
            launched(4, DEEPSPEED),
            {"tensor_parallel_degree": 2},
            ["training.tensor_parallel_degree = 2", "distributed_type: DEEPSPEED"],
        ),
        (
            launched(4, FSDP2, {"ACCELERATE_MIXED_PRECISION": "bf16"}),
            {"mixed_precision_param": "float32"},
            ["training.mixed_precision_param = float32", "mixed_precision: bf16"],
        ),
        (
            launched(4, FSDP2),
            {"mixed_precision_param": "bfloat16"},
            ["training.mixed_precision_param = bfloat16", "mixed_precision: no"],
        ),
        (
            launched(4, DEEPSPEED, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}),
            {"gradient_accumulation_steps": 2},
            ["training.gradient_accumulation_steps = 2", "gradient_accumulation_steps: 4"],
        ),
    ],
)
def test_a_contradiction_shows_both_values(environment, options, both):
    message = refusal(environment, **options)
    assert "contradicts" in message
    assert all(value in message for value in both), message


def test_degrees_that_do_not_fit_are_answered_with_those_that_do():
    message = refusal(
        launched(8, FSDP2), data_parallel_replicate_degree=3, data_parallel_shard_degree=2
    )
    assert "3 x 2 x 1 make 6 processes, 8 were launched" in message
    shown = message.split("use one of ")[1].split(", ")
    assert "4 x 2 x 1" in shown
    assert all(math.prod(map(int, layout.split(" x "))) == 8 for layout in shown)
    assert "launch 6 processes" in message


@pytest.mark.parametrize(
    "options",
    [
        {"data_parallel_shard_degree": 2},
        {"data_parallel_replicate_degree": 2},
        {"tensor_parallel_degree": 2},
    ],
)
def test_one_process_is_not_several(options):
    assert "1 were launched" in refusal({}, **options)


def test_split_matrices_are_not_replicated_without_sharding():
    message = refusal(launched(4), tensor_parallel_degree=2)
    assert "--training.data_parallel_shard_degree -1" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "context parallelism"),
        ({"PARALLELISM_CONFIG_SP_SIZE": "2"}, "sequence parallelism"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "float8.recipe_name"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "--training.compile"),
        (FSDP2 | {"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        (FSDP2 | {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, "saves no memory"),
        (FSDP2 | {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "TRANSFORMER_BASED_WRAP"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "NO_WRAP"),
        (FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--activation_checkpoint.mode full"),
        (FSDP2 | {"FSDP_IGNORED_MODULES": ".*norm"}, "nothing sums their gradients"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(changes, said):
    assert said in refusal(launched(4, changes))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "4"}, "no RANK and no LOCAL_RANK"),
        ({"WORLD_SIZE": "4", "RANK": "1"}, "no LOCAL_RANK"),
        (FSDP2, "no launcher gave this process a rank"),
        (DEEPSPEED, "no launcher gave this process a rank"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes"),
        ({"PMI_SIZE": "2"}, "mpirun started 2 processes"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 processes"),
        (
            {
                "ACCELERATE_USE_CPU": "True",
                "ACCELERATE_MIXED_PRECISION": "no",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "29500",
            },
            "started this one alone",
        ),
    ],
)
def test_a_process_that_would_train_for_itself_is_refused(environment, said):
    assert said in refusal(environment)


def test_one_process_of_a_scheduler_is_fine():
    assert settle({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "1"}).engine == "single"


def test_more_processes_than_devices_are_refused():
    assert settle(launched(4), devices=4).engine == "ddp"
    with pytest.raises(UserError, match="4 processes were launched on a machine with 3 device"):
        settle(launched(4), devices=3)
    two_machines = launched(4) | {"LOCAL_WORLD_SIZE": "2"}
    assert settle(two_machines, devices=2).world_size == 4


@pytest.mark.parametrize(
    ("environment", "options", "precision"),
    [
        ({}, {}, "float32"),
        (launched(2), {"mixed_precision_param": "bfloat16"}, "float32"),
        (launched(2, {"ACCELERATE_MIXED_PRECISION": "bf16"}), {}, "bfloat16"),
        (launched(2, FSDP2), {}, "float32"),
        (launched(2, FSDP2), {"mixed_precision_param": "float32"}, "float32"),
        (launched(2, FSDP2, {"ACCELERATE_MIXED_PRECISION": "bf16"}), {}, "bfloat16"),
    ],
)
def test_the_precision_is_the_launchs_and_an_option_may_confirm_it(environment, options, precision):
    topology = settle(environment, **options)
    assert (topology.param_dtype, topology.reduce_dtype) == (precision, "float32")


@pytest.mark.covers_option("training.mixed_precision_param")
def test_without_a_word_of_the_launch_the_option_decides_and_bfloat16_is_its_default():
    silent = {k: v for k, v in launched(2).items() if k != "ACCELERATE_MIXED_PRECISION"}
    shards = {"data_parallel_shard_degree": -1}
    assert settle(silent, **shards).param_dtype == "bfloat16"
    assert settle(silent, **shards, mixed_precision_param="float32").param_dtype == "float32"
    assert settle(silent).param_dtype == "float32"


@pytest.mark.covers_option("training.enable_cpu_offload")
def test_offloading_is_asked_for_by_either_side_and_needs_sharding():
    offloads = FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}
    assert settle(launched(2, offloads)).offload
    assert settle(launched(2, FSDP2), enable_cpu_offload=True).offload
    assert settle(launched(2), enable_cpu_offload=True, data_parallel_shard_degree=-1).offload
    assert not settle(launched(2, FSDP2)).offload
    assert "training.enable_cpu_offload" in refusal(launched(2), enable_cpu_offload=True)
    assert "fsdp2_offload.yaml" in refusal({}, enable_cpu_offload=True)


def test_one_process_of_fsdp2_shards_only_to_offload():
    assert settle(launched(1, FSDP2)).engine == "single"
    assert settle(launched(1, FSDP2), enable_cpu_offload=True).engine == "fsdp2"
    assert settle(launched(1, FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"})).engine == "fsdp2"


@pytest.mark.parametrize("device", ["OPTIMIZER", "PARAM"])
def test_deepspeed_says_itself_what_it_offloads(device):
    environment = launched(2, DEEPSPEED, {f"ACCELERATE_DEEPSPEED_OFFLOAD_{device}_DEVICE": "cpu"})
    topology = settle(environment)
    assert topology.offload and topology.zero_stage == 3
    assert not settle(launched(2, DEEPSPEED)).offload


@pytest.mark.parametrize("said", ["auto", "3"])
def test_accumulation_left_to_the_options_or_the_same_is_no_contradiction(said):
    environment = launched(2, DEEPSPEED, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": said})
    assert settle(environment, gradient_accumulation_steps=3).engine == "deepspeed"
