"""`flame-accel train` launches what the environment says, and refuses what cannot be launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flame_accel.__main__ import main
from flame_accel.commands import train
from flame_accel.commands.train import (
    AccelerateLaunch,
    count_visible_gpus,
    prepend_quickstart_unless_model_or_file_given,
    resolve_accelerate_launch,
    run_accelerate_launch_in_this_process,
)
from flame_accel.config import UserError
from tests.helpers.accelerate_configs import NAMES, validate_launch
from tests.helpers.runs import ROOT, launch_environment


def read_flags(plan: AccelerateLaunch) -> dict[str, str]:
    """The launcher's flags with their values."""
    assert all(flag.startswith("--") for flag in plan.flags[::2])
    return dict(zip(plan.flags[::2], plan.flags[1::2], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_launch_preset_is_taken_by_its_name(name):
    processes = 1 if name in ("cpu", "single") else 4
    plan = resolve_accelerate_launch(
        {"ACCELERATE_CONFIG": name, "NGPU": str(processes)}, num_gpus=0, num_cores=8
    )
    flags = read_flags(plan)
    assert Path(flags["--config_file"]).resolve() == ROOT / f"accelerate_configs/{name}.yaml"
    assert flags["--num_processes"] == str(processes)
    # one machine, also with the file for several
    assert (flags["--num_machines"], flags["--rdzv_backend"]) == ("1", "static")
    assert flags["--mixed_precision"] == "no"
    # what it says is what the launcher accepts
    assert validate_launch(Path(flags["--config_file"]), *plan.flags[2:]).num_machines == 1


@pytest.mark.parametrize(
    ("environment", "name", "processes"),
    [
        ({}, "cpu", 1),
        ({"NGPU": "2"}, "ddp", 2),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "single", 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "ddp", 4),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "NGPU": "1"}, "single", 1),
        ({"NGPU": "2", "NNODE": "3", "MASTER_ADDR": "10.0.0.1"}, "ddp", 6),
        ({"NGPU": "", "ACCELERATE_CONFIG": ""}, "cpu", 1),
    ],
)
def test_the_launch_fits_the_machine(environment, name, processes):
    num_gpus = count_visible_gpus({"CUDA_VISIBLE_DEVICES": "", **environment})
    flags = read_flags(resolve_accelerate_launch(environment, num_gpus=num_gpus, num_cores=8))
    assert Path(flags["--config_file"]).stem == name
    assert flags["--num_processes"] == str(processes)
    assert ("--mixed_precision" in flags) == ("CUDA_VISIBLE_DEVICES" not in environment)


def test_several_machines_find_each_other_where_the_environment_says():
    given = {"NNODE": "3", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.1", "NGPU": "8"}
    plan = resolve_accelerate_launch(
        {"ACCELERATE_CONFIG": "multi_node", **given}, num_gpus=8, num_cores=8
    )
    flags = read_flags(plan)
    assert flags["--num_machines"] == "3" and flags["--machine_rank"] == "2"
    assert flags["--num_processes"] == "24" and flags["--rdzv_backend"] == "static"
    assert flags["--main_process_ip"] == "10.0.0.1" and flags["--main_process_port"] == "29500"
    environment = {"ACCELERATE_CONFIG": "zero3", "MASTER_PORT": "12345", **given}
    flags = read_flags(resolve_accelerate_launch(environment, num_gpus=8, num_cores=8))
    assert flags["--main_process_port"] == "12345"


def test_one_machine_uses_the_given_port_and_no_other():
    plan = resolve_accelerate_launch({"NGPU": "2"}, num_gpus=2, num_cores=8)
    assert "--main_process_port" not in plan.flags and "--main_process_ip" not in plan.flags
    plan = resolve_accelerate_launch({"NGPU": "2", "MASTER_PORT": "12345"}, num_gpus=2, num_cores=8)
    assert read_flags(plan)["--main_process_port"] == "12345"


def test_processes_on_a_cpu_share_its_cores():
    plan = resolve_accelerate_launch({"NGPU": "2"}, num_gpus=0, num_cores=9)
    assert plan.environment["OMP_NUM_THREADS"] == "4"
    assert plan.environment["GOMP_SPINCOUNT"] == "1000"
    assert (
        resolve_accelerate_launch({}, num_gpus=0, num_cores=9).environment["OMP_NUM_THREADS"] == "9"
    )
    many = resolve_accelerate_launch({"NGPU": "4"}, num_gpus=0, num_cores=2)
    assert many.environment["OMP_NUM_THREADS"] == "1"
    assert resolve_accelerate_launch({}, num_gpus=1, num_cores=9).environment == {
        "TOKENIZERS_PARALLELISM": "false"
    }


def test_variables_that_the_user_has_set_are_kept():
    given = {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "5", "TOKENIZERS_PARALLELISM": "true"}
    assert resolve_accelerate_launch(given, num_gpus=0, num_cores=8).environment == given


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_CONFIG": "fsdp3"}, ["fsdp3", "mean fsdp2", *NAMES]),
        ({"ACCELERATE_CONFIG": "cpu", "NGPU": "2"}, ["one process", "ask for 2", "ddp"]),
        ({"NNODE": "2"}, ["MASTER_ADDR"]),
        ({"NGPU": "two"}, ["NGPU", '"two"', "positive"]),
        ({"NNODE": "0"}, ["NNODE", '"0"', "positive"]),
        ({"NODE_RANK": "x"}, ["NODE_RANK", '"x"', "one of 1 machines"]),
        ({"NNODE": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"}, ["NODE_RANK", "from 0 to 1"]),
        ({"WORLD_SIZE": "2", "RANK": "1"}, ["one of 2 processes", "unset WORLD_SIZE", "NNODE"]),
        ({"MASTER_PORT": "abc"}, ["MASTER_PORT", '"abc"', "not a port"]),
        ({"MASTER_PORT": "99999"}, ["MASTER_PORT", "65535"]),
        ({"ACCELERATE_CONFIG": "{tmp}/list.yaml"}, ["list.yaml", "not a mapping"]),
        ({"ACCELERATE_CONFIG": "{tmp}/broken.yaml"}, ["broken.yaml", "cannot be read"]),
        ({"ACCELERATE_CONFIG": "{tmp}/no.yaml", "NGPU": "2"}, ["no.yaml", "one process"]),
    ],
)
def test_what_cannot_be_launched_is_refused(environment, said, tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    (tmp_path / "no.yaml").write_text("distributed_type: NO\n")
    environment = {
        name: value.replace("{tmp}", str(tmp_path)) for name, value in environment.items()
    }
    with pytest.raises(UserError) as caught:
        resolve_accelerate_launch(environment, num_gpus=0, num_cores=8)
    assert caught.value.exit_code == 2
    for words in said:
        assert words in str(caught.value)


def test_zero_without_deepspeed_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"(?s)DeepSpeed.*not installed.*pip install .*engines\.txt"
    ):
        resolve_accelerate_launch(
            {"ACCELERATE_CONFIG": "zero2", "NGPU": "2"}, num_gpus=0, num_cores=8
        )


def test_a_file_of_the_users_own_is_taken_as_it_is(tmp_path):
    own = tmp_path / "fsdp2"
    own.write_text("distributed_type: FSDP\n")
    environment = {"ACCELERATE_CONFIG": str(own), "NGPU": "2"}
    flags = read_flags(resolve_accelerate_launch(environment, num_gpus=0, num_cores=8))
    assert flags["--config_file"] == str(own)


@pytest.mark.parametrize(
    ("options", "with_quickstart"),
    [
        ([], True),
        (["--training.steps", "5"], True),
        (["--model.custom", "mine.py"], True),
        (["--job.config_file", "run.toml"], False),
        (["--job.config-file=run.toml"], False),
        (["--training.steps", "5", "--model.config=gla.json"], False),
        (["-h"], False),
    ],
)
def test_the_quickstart_is_the_base_unless_a_run_file_or_a_model_is_named(options, with_quickstart):
    base = ["--job.config_file", "quickstart"] if with_quickstart else []
    assert prepend_quickstart_unless_model_or_file_given(options) == [*base, *options]


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("GPU-aa, GPU-bb", 2)],
)
def test_visible_devices_are_counted(visible, gpus):
    assert count_visible_gpus({"CUDA_VISIBLE_DEVICES": visible}) == gpus


def test_all_gpus_of_the_machine_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_visible_gpus({}) == 0
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: A'\necho '  MIG 1g: b'\necho 'GPU 1: A'\n")
    program.chmod(0o755)
    assert count_visible_gpus({}) == 2


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("raise SystemExit(0)", 0, ""),
        ("raise SystemExit(2)", 2, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, "SIGKILL"),
    ],
)
@pytest.mark.parametrize("config", ["cpu", pytest.param("ddp", marks=pytest.mark.distributed)])
def test_the_exit_code_of_the_run_passes_through(
    config, program, code, said, tmp_path, monkeypatch, capfd
):
    script = tmp_path / "run.py"
    script.write_text(program)
    monkeypatch.setattr(train, "SCRIPT", script)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = resolve_accelerate_launch(
        {"ACCELERATE_CONFIG": config, "NGPU": "1"}, num_gpus=0, num_cores=2
    )
    assert run_accelerate_launch_in_this_process(plan, []) == code
    error = capfd.readouterr().err
    assert "Traceback" not in error and said in error


def test_options_reach_the_launched_script_as_they_were_given(monkeypatch):
    launched: list[tuple[AccelerateLaunch, list[str]]] = []

    def record_launch(plan: AccelerateLaunch, options: list[str]) -> int:
        launched.append((plan, options))
        return 3

    monkeypatch.setattr(train, "run_accelerate_launch_in_this_process", record_launch)
    left_over = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}
    monkeypatch.setattr("os.environ", launch_environment(**left_over))
    options = ["--training.steps", "40", "--job.description", "two words", "--training.varlen=true"]
    with pytest.raises(SystemExit) as end:
        main(["train", *options])
    assert end.value.code == 3
    assert launched[0][1] == ["--job.config_file", "quickstart", *options]
    assert not left_over.keys() & os.environ.keys()


def test_wrong_options_end_with_code_2_before_torch_is_imported():
    code = (
        "import sys; from flame_accel.__main__ import main\n"
        "try: main(['train', '--training.stepz', '5'])\n"
        "except SystemExit as end: print(end.code, {'torch', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "2 set()", done.stderr
    assert "--training.steps" in done.stderr
