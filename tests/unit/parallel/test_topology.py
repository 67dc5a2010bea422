"""Resolving a topology from options and a launch: agreement, completion, refusal.

Pure: no process is started here; `laws/test_accelerate_traps` and `laws/test_engines` start some.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame_accel.config import ConfigError, TrainingConfig, UserError
from flame_accel.parallel.topology import Topology, resolve_engine_mesh_and_precision
from tests.helpers.launches import DEEPSPEED, FSDP2, launch_variables
from tests.helpers.runs import launch

DEFAULTS = TrainingConfig()


OPTIONS = {
    "replicate": "data_parallel_replicate_degree",
    "shard": "data_parallel_shard_degree",
    "tensor": "tensor_parallel_degree",
}


def resolve(environment: dict[str, str], *, devices: int | None = None, **options: Any) -> Topology:
    training = replace(DEFAULTS, **options)
    return resolve_engine_mesh_and_precision(training, environment, num_devices=devices)


def refusal(environment: dict[str, str], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        resolve(environment, **options)
    assert caught.value.exit_code == 2
    assert caught.value.where and caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize(
    ("environment", "options", "engine", "layout"),
    [
        ({}, {}, "single", (1, 1, 1)),
        ({}, {"data_parallel_shard_degree": -1}, "single", (1, 1, 1)),
        (launch_variables(1), {}, "single", (1, 1, 1)),
        (launch_variables(1, FSDP2), {}, "single", (1, 1, 1)),
        (launch_variables(1, DEEPSPEED), {}, "deepspeed", (1, 1, 1)),
        (launch_variables(4), {}, "ddp", (4, 1, 1)),
        (launch_variables(4), {"data_parallel_replicate_degree": 4}, "ddp", (4, 1, 1)),
        (launch_variables(4), {"data_parallel_shard_degree": 1}, "ddp", (4, 1, 1)),
        (
            launch_variables(4),
            {"data_parallel_replicate_degree": 4, "data_parallel_shard_degree": -1},
            "ddp",
            (4, 1, 1),
        ),
        (launch_variables(4), {"data_parallel_shard_degree": -1}, "fsdp2", (1, 4, 1)),
        (launch_variables(4), {"data_parallel_shard_degree": 4}, "fsdp2", (1, 4, 1)),
        (
            launch_variables(8),
            {"data_parallel_shard_degree": -1, "tensor_parallel_degree": 2},
            "fsdp2",
            (1, 4, 2),
        ),
        (launch_variables(4, FSDP2), {}, "fsdp2", (1, 4, 1)),
        (launch_variables(4, FSDP2), {"data_parallel_replicate_degree": 2}, "fsdp2", (2, 2, 1)),
        (launch_variables(8, FSDP2, replicate=2, shard=-1), {}, "fsdp2", (2, 4, 1)),
        (launch_variables(8, FSDP2, shard=-1, tensor=2), {}, "fsdp2", (1, 4, 2)),
        (launch_variables(8, replicate=2, shard=4), {}, "fsdp2", (2, 4, 1)),
        (launch_variables(2), {"tensor_parallel_degree": 2}, "tensor", (1, 1, 2)),
        (launch_variables(2, tensor=2), {}, "tensor", (1, 1, 2)),
        (launch_variables(2, FSDP2), {"tensor_parallel_degree": 2}, "tensor", (1, 1, 2)),
        (launch_variables(4, DEEPSPEED), {}, "deepspeed", (1, 4, 1)),
    ],
)
def test_a_value_of_one_side_is_taken(environment, options, engine, layout):
    topology = resolve(environment, **options)
    assert (topology.engine, topology.degrees) == (engine, layout)
    assert topology.world_size == math.prod(layout)


sizes = st.integers(1, 6)


speakers = st.sampled_from(["option", "yaml", "both"])


@pytest.mark.covers_option("training.data_parallel_shard_degree")
@given(layout=st.tuples(sizes, st.integers(2, 6), sizes), said_by=st.tuples(*[speakers] * 3))
def test_options_and_yaml_give_degrees_alike(layout, said_by):
    options, yaml = {}, {}
    for axis, size, speaker in zip(OPTIONS, layout, said_by, strict=True):
        if speaker in ("option", "both"):
            options[OPTIONS[axis]] = size
        if speaker in ("yaml", "both"):
            yaml[axis] = size
    for engine in (FSDP2, {}):
        topology = resolve(launch_variables(math.prod(layout), engine, **yaml), **options)
        assert topology.degrees == layout
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
    environment = launch_variables(
        math.prod(layout), FSDP2, **({"shard": -1} if "yaml" in rest else {})
    )
    assert resolve(environment, **options).degrees == layout


@given(
    world=st.integers(1, 24),
    engine=st.sampled_from([{}, FSDP2]),
    replicate=st.none() | st.integers(1, 5),
    shard=st.none() | st.just(-1) | st.integers(1, 5),
    tensor=st.integers(1, 5),
)
def test_a_topology_has_all_processes_and_the_degrees_asked_for_or_is_refused(
    world, engine, replicate, shard, tensor
):
    options = {
        "data_parallel_replicate_degree": replicate,
        "data_parallel_shard_degree": shard,
        "tensor_parallel_degree": tensor,
    }
    try:
        topology = resolve(launch_variables(world, engine), **options)
    except UserError as error:
        assert error.remedy
        return
    assert math.prod(topology.degrees) == topology.world_size == world
    assert replicate in (None, topology.degrees.dp_replicate)
    assert shard in (None, -1, topology.degrees.dp_shard)
    assert topology.degrees.tp == tensor
    assert (topology.engine == "fsdp2") == (topology.degrees.dp_shard > 1)
    assert (topology.engine == "ddp") == (
        topology.degrees.dp_replicate > 1 and topology.degrees.dp_shard == 1
    )


@pytest.mark.parametrize(
    ("environment", "options", "both"),
    [
        (
            launch_variables(8, FSDP2, shard=4, replicate=2),
            {"data_parallel_shard_degree": 2},
            ["training.data_parallel_shard_degree = 2", "parallelism_config_dp_shard_size: 4"],
        ),
        (
            launch_variables(8, FSDP2, shard=-1, replicate=2),
            {"data_parallel_replicate_degree": 4},
            [
                "training.data_parallel_replicate_degree = 4",
                "parallelism_config_dp_replicate_size: 2",
            ],
        ),
        (
            launch_variables(8, tensor=8),
            {"tensor_parallel_degree": 4},
            ["training.tensor_parallel_degree = 4", "parallelism_config_tp_size: 8"],
        ),
        (
            launch_variables(4, FSDP2),
            {"data_parallel_shard_degree": 1},
            ["training.data_parallel_shard_degree = 1", "distributed_type: FSDP"],
        ),
        (
            launch_variables(4, FSDP2),
            {"data_parallel_replicate_degree": 4},
            ["training.data_parallel_replicate_degree = 4", "distributed_type: FSDP"],
        ),
        (
            launch_variables(4, DEEPSPEED),
            {"data_parallel_shard_degree": 4},
            ["training.data_parallel_shard_degree = 4", "distributed_type: DEEPSPEED"],
        ),
        (
            launch_variables(4, DEEPSPEED),
            {"tensor_parallel_degree": 2},
            ["training.tensor_parallel_degree = 2", "distributed_type: DEEPSPEED"],
        ),
        (
            launch_variables(4, FSDP2, {"ACCELERATE_MIXED_PRECISION": "bf16"}),
            {"mixed_precision_param": "float32"},
            ["training.mixed_precision_param = float32", "mixed_precision: bf16"],
        ),
        (
            launch_variables(4, FSDP2),
            {"mixed_precision_param": "bfloat16"},
            ["training.mixed_precision_param = bfloat16", "mixed_precision: no"],
        ),
        (
            launch_variables(4, DEEPSPEED, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}),
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
        launch_variables(8, FSDP2), data_parallel_replicate_degree=3, data_parallel_shard_degree=2
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


def test_tensor_parallel_replicas_need_sharding():
    message = refusal(launch_variables(4), tensor_parallel_degree=2)
    assert "--training.data_parallel_shard_degree -1" in message


@pytest.mark.parametrize(
    ("environment", "options", "precision"),
    [
        ({}, {}, "float32"),
        (launch_variables(2), {"mixed_precision_param": "bfloat16"}, "float32"),
        (launch_variables(2, {"ACCELERATE_MIXED_PRECISION": "bf16"}), {}, "bfloat16"),
        (launch_variables(2, FSDP2), {}, "float32"),
        (launch_variables(2, FSDP2), {"mixed_precision_param": "float32"}, "float32"),
        (launch_variables(2, FSDP2, {"ACCELERATE_MIXED_PRECISION": "bf16"}), {}, "bfloat16"),
    ],
)
def test_the_launch_decides_the_precision_and_options_may_agree(environment, options, precision):
    topology = resolve(environment, **options)
    assert (topology.param_dtype, topology.reduce_dtype) == (precision, "float32")


@pytest.mark.covers_option("training.mixed_precision_param")
def test_where_the_launch_leaves_the_precision_open_the_option_decides():
    silent = {k: v for k, v in launch_variables(2).items() if k != "ACCELERATE_MIXED_PRECISION"}
    shards = {"data_parallel_shard_degree": -1}
    assert resolve(silent, **shards).param_dtype == "bfloat16"
    assert resolve(silent, **shards, mixed_precision_param="float32").param_dtype == "float32"
    assert resolve(silent).param_dtype == "float32"


@pytest.mark.covers_option("training.enable_cpu_offload")
def test_offloading_is_asked_for_by_either_side_and_needs_sharding():
    offloads = FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}
    assert resolve(launch_variables(2, offloads)).offload
    assert resolve(launch_variables(2, FSDP2), enable_cpu_offload=True).offload
    assert resolve(
        launch_variables(2), enable_cpu_offload=True, data_parallel_shard_degree=-1
    ).offload
    assert not resolve(launch_variables(2, FSDP2)).offload
    assert "training.enable_cpu_offload" in refusal(launch_variables(2), enable_cpu_offload=True)
    assert "fsdp2_offload.yaml" in refusal({}, enable_cpu_offload=True)


def test_one_process_of_fsdp2_shards_only_to_offload():
    assert resolve(launch_variables(1, FSDP2)).engine == "single"
    assert resolve(launch_variables(1, FSDP2), enable_cpu_offload=True).engine == "fsdp2"
    assert resolve(launch_variables(1, FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"})).engine == "fsdp2"


@pytest.mark.parametrize("device", ["OPTIMIZER", "PARAM"])
def test_deepspeeds_own_settings_decide_what_it_offloads(device):
    environment = launch_variables(
        2, DEEPSPEED, {f"ACCELERATE_DEEPSPEED_OFFLOAD_{device}_DEVICE": "cpu"}
    )
    topology = resolve(environment)
    assert topology.offload
    assert not resolve(launch_variables(2, DEEPSPEED)).offload


@pytest.mark.parametrize("message", ["auto", "3"])
def test_accumulation_left_to_the_options_or_the_same_is_no_contradiction(message):
    environment = launch_variables(
        2, DEEPSPEED, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": message}
    )
    assert resolve(environment, gradient_accumulation_steps=3).engine == "deepspeed"


@pytest.mark.covers_option("training.mixed_precision_reduce")
def test_gradients_are_summed_in_fp32_with_parameters_in_bf16(configured):
    config = configured(**{"training.mixed_precision_reduce": "float32"})
    launch = launch_variables(2, FSDP2, {"ACCELERATE_MIXED_PRECISION": "bf16"})
    topology = resolve_engine_mesh_and_precision(config.training, launch, num_devices=None)
    assert (topology.param_dtype, topology.reduce_dtype) == ("bfloat16", "float32")
    with pytest.raises(ConfigError, match="must be one of float32"):
        configured(**{"training.mixed_precision_reduce": "bfloat16"})


@pytest.mark.distributed
def test_data_parallel_options_that_contradict_the_launch_are_refused(corpus, tiny_model, tmp_path):
    argv = [
        *(f"--job.dump_folder={tmp_path}", f"--model.config={tiny_model}"),
        *("--model.tokenizer_path=byte", f"--training.dataset={corpus}"),
        *("--training.steps=4", "--training.warmup_steps=1"),
        "--training.data_parallel_shard_degree=1",
    ]
    printed = launch(argv, config="fsdp2", processes=2, fails=True)
    assert "training.data_parallel_shard_degree = 1" in printed
    assert "contradicts distributed_type: FSDP" in printed
