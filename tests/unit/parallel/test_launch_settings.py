"""Reading a launch from its environment: what is refused, and why."""

import pytest

from flame_accel.config import UserError
from flame_accel.parallel.launch_settings import is_variable_true, read_launch_settings
from tests.helpers.launches import DEEPSPEED, FSDP2, launch_variables


def refusal(environment: dict[str, str]) -> str:
    """The message of the error about a launch on the CPU."""
    with pytest.raises(UserError) as caught:
        read_launch_settings(environment, num_devices=None)
    assert caught.value.exit_code == 2
    assert caught.value.where and caught.value.remedy
    return str(caught.value)


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
    assert said in refusal(launch_variables(4, changes))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "4"}, "no RANK and no LOCAL_RANK"),
        ({"WORLD_SIZE": "4", "RANK": "1"}, "no LOCAL_RANK"),
        (FSDP2, "ACCELERATE_USE_FSDP in the environment"),
        (DEEPSPEED, "ACCELERATE_USE_DEEPSPEED in the environment"),
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
def test_a_process_that_would_train_by_itself_is_refused(environment, said):
    assert said in refusal(environment)


def test_one_process_of_a_scheduler_is_fine():
    environment = {"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "1"}
    launch = read_launch_settings(environment, num_devices=None)
    assert (launch.engine, launch.world_size) == ("plain", 1)


def test_more_processes_than_devices_are_refused():
    assert read_launch_settings(launch_variables(4), num_devices=4).world_size == 4
    with pytest.raises(UserError, match="4 processes were launched on a machine with 3 device"):
        read_launch_settings(launch_variables(4), num_devices=3)
    two_machines = launch_variables(4) | {"LOCAL_WORLD_SIZE": "2"}
    assert read_launch_settings(two_machines, num_devices=2).world_size == 4


def test_a_size_of_1_and_a_missing_mesh_leave_the_value_open():
    assert read_launch_settings(launch_variables(4, FSDP2), num_devices=None).tp is None
    launch = read_launch_settings(
        launch_variables(4, FSDP2, replicate=2, shard=-1), num_devices=None
    )
    assert (launch.dp_replicate, launch.dp_shard, launch.tp) == (2, -1, None)


@pytest.mark.parametrize(
    ("variables", "precision", "offload"),
    [
        ({}, "float32", False),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "bfloat16", False),
        (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, "float32", True),
        (DEEPSPEED, "float32", False),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "float32", True),
    ],
)
def test_precision_and_offloading_are_read(variables, precision, offload):
    launch = read_launch_settings(launch_variables(2, variables), num_devices=None)
    assert (launch.precision, launch.offload) == (precision, offload)


@pytest.mark.parametrize(("value", "enabled"), [("1", True), ("TRUE", True), ("no", False)])
def test_variables_are_true_in_the_ways_of_accelerate(value, enabled):
    assert is_variable_true({"X": value}, "X") is enabled
    assert not is_variable_true({}, "X")
