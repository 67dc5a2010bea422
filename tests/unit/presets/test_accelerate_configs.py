"""accelerate_configs/: the launcher reads each file as it says, and defaults that harm are set.

Nothing is trained here: laws/test_engines.py runs the engines, laws/test_launchers.py the commands.
"""

import re

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file

from tests.helpers.accelerate_configs import FILES, NAMES, read_config, read_groups, validate_launch
from tests.helpers.runs import ROOT

# what the launcher must make of each file: engine, processes, machines, and the mesh if it has one
EXPECTED: dict[str, tuple[str, int, int, tuple[int, ...]]] = {
    "cpu": ("", 1, 1, ()),
    "single": ("", 1, 1, ()),
    "ddp": ("multi_gpu", 8, 1, ()),
    "fsdp2": ("use_fsdp", 8, 1, ()),
    "fsdp2_offload": ("use_fsdp", 8, 1, ()),
    "fsdp2_tp": ("use_fsdp", 8, 1, (1, -1, 2, 1)),
    "hsdp": ("use_fsdp", 8, 1, (2, -1, 1, 1)),
    "multi_node": ("use_fsdp", 16, 2, ()),
    "tp": ("multi_gpu", 2, 1, (1, 1, 2, 1)),
    "zero1": ("use_deepspeed", 8, 1, ()),
    "zero2": ("use_deepspeed", 8, 1, ()),
    "zero3": ("use_deepspeed", 8, 1, ()),
    "zero3_offload": ("use_deepspeed", 8, 1, ()),
}
MESH = ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size")
# the launcher's defaults for these train something else than the file's name says, or not at all
ALWAYS = {"distributed_type", "mixed_precision", "num_machines", "num_processes", "use_cpu"}
DANGEROUS = {
    "multi_gpu": {"main_process_port": {0}},
    "use_fsdp": {
        "fsdp_version": {2},
        "fsdp_auto_wrap_policy": {"TRANSFORMER_BASED_WRAP"},
        "fsdp_cpu_ram_efficient_loading": {False},
        "fsdp_activation_checkpointing": {False},
        "fsdp_offload_params": {False, True},
        "fsdp_reshard_after_forward": {True},
        "fsdp_state_dict_type": {"SHARDED_STATE_DICT"},
    },
    "use_deepspeed": {
        "zero_stage": {1, 2, 3},
        "gradient_clipping": {"auto"},
        "gradient_accumulation_steps": {"auto"},
        "offload_optimizer_device": {"none", "cpu"},
        "offload_param_device": {"none", "cpu"},
        "zero3_init_flag": {False},
        "zero3_save_16bit_model": {False},
        "deepspeed_multinode_launcher": {"standard"},
    },
}


def test_these_are_the_files():
    assert set(NAMES) == set(EXPECTED)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_accelerate_launches_what_the_name_says(path):
    engine, processes, machines, mesh = EXPECTED[path.stem]
    arguments = validate_launch(path)
    engines = ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu")
    assert [name for name in engines if getattr(arguments, name)] == ([engine] if engine else [])
    assert (arguments.num_processes, arguments.num_machines) == (processes, machines)
    assert arguments.use_parallelism_config == bool(mesh)
    assert not arguments.same_network
    if mesh:
        found = tuple(getattr(arguments, f"parallelism_config_{size}") for size in MESH)
        assert found == mesh
    if engine == "use_deepspeed":
        assert arguments.zero_stage == int(path.stem[4])
    offload = path.stem.endswith("_offload")
    if engine == "use_fsdp":
        assert arguments.fsdp_offload_params == offload
    if engine == "use_deepspeed":
        device = "cpu" if offload else "none"
        assert arguments.offload_optimizer_device == arguments.offload_param_device == device


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_accelerate_knows_every_key(path):
    # at the top an unknown key is an error of the reader; within a group it would be ignored
    load_config_from_file(str(path))
    known = vars(launch.launch_command_parser().parse_args(["train.py"]))
    assert set(read_groups(read_config(path))) <= set(known)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_dangerous_defaults_are_written_out(path):
    content = read_config(path)
    engine, _, machines, _ = EXPECTED[path.stem]
    assert set(content) >= ALWAYS
    if machines > 1:
        assert {"machine_rank", "main_process_ip", "rdzv_backend", "same_network"} <= set(content)
        assert content["main_process_port"] > 0
    elif engine:
        assert content["main_process_port"] == 0
    given = content | read_groups(content)
    for key, allowed in DANGEROUS.get(engine, {}).items():
        if machines == 1 or key != "main_process_port":
            assert given[key] in allowed, key


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_line_has_a_comment(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert [line for line in lines if not re.search(r"(^|\s)# \S", line)] == []
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_flags_of_the_launcher_override_the_file(path):
    arguments = validate_launch(path, "--num_processes", "4", "--mixed_precision", "no")
    assert (arguments.num_processes, arguments.mixed_precision) == (4, "no")


def test_what_is_missing_for_an_engine_is_pinned_and_is_an_extra():
    pins = (ROOT / "requirements-engines.txt").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for package in ("deepspeed", "torchao"):
        assert re.search(rf"^{package}==", pins, re.MULTILINE)
        assert re.search(rf'^{package} = \["{package}', project, re.MULTILINE)
