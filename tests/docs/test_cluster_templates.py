"""The templates for clusters launch what they say, and the tools that read them accept them.

The tools themselves are not part of the test environment: `make clusters` runs this file where they
are installed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flame_accel.commands.train import resolve_accelerate_launch

ROOT = Path(__file__).parents[2]
SKYPILOT = ROOT / "configs/cluster/skypilot.yaml"
PYTORCHJOB = ROOT / "configs/cluster/pytorchjob.yaml"


def read_pods() -> dict[str, dict[str, Any]]:
    """The pod templates by the name of their replicas."""
    replicas = yaml.safe_load(PYTORCHJOB.read_text())["spec"]["pytorchReplicaSpecs"]
    return {name: replica["template"]["spec"] for name, replica in replicas.items()}


def record_launch(script: str, environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """Runs a template's script where only the launch itself is replaced; what that was given."""
    recorder = f"#!{sys.executable}\nimport json, os, sys\n"
    recorder += "print(json.dumps([dict(os.environ), sys.argv[1:]]))\n"
    bash = 'exec() { builtin exec python launched "${@:2}"; }\ncp() { :; }; pip() { :; }\n'
    (folder / "launched").write_text(recorder)
    done = subprocess.run(
        ["bash", "-c", bash + script],
        cwd=folder,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    variables, arguments = json.loads(done.stdout)
    launch = resolve_accelerate_launch(variables, num_gpus=8, num_cores=64)
    flags = dict(zip(launch.flags[::2], launch.flags[1::2], strict=True))
    return {**flags, "arguments": arguments}


def check_launch(launch: dict[str, Any], rank: int, address: str, first_arguments: list[str]):
    assert Path(launch["--config_file"]).stem == "multi_node"
    assert launch["--num_machines"] == "2" and launch["--num_processes"] == "16"
    assert launch["--machine_rank"] == str(rank)
    assert launch["--main_process_ip"] == address
    options = [*first_arguments, "--job.config_file", "quickstart", "--job.dump_folder"]
    assert launch["arguments"][: len(options)] == options


@pytest.mark.parametrize("rank", [0, 1])
def test_the_pods_of_kubeflow_launch_one_run(rank, tmp_path):
    container = read_pods()[["Master", "Worker"][rank]]["containers"][0]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    given |= {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "8", "RANK": str(rank), "WORLD_SIZE": "16"}
    given |= {"MASTER_ADDR": "flame-accel-master-0", "MASTER_PORT": "23456"}
    launch = record_launch(container["args"][0], given, tmp_path)
    check_launch(launch, rank, "flame-accel-master-0", ["train"])
    assert launch["--main_process_port"] == "23456"


@pytest.mark.parametrize("rank", [0, 1])
def test_the_nodes_of_skypilot_launch_one_run(rank, tmp_path):
    task = yaml.safe_load(SKYPILOT.read_text())
    given = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank)}
    given |= {"SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    launch = record_launch(task["run"], {**task["envs"], **given}, tmp_path)
    check_launch(launch, rank, "10.0.0.1", ["train.sh"])


def test_the_machines_of_kubeflow_differ_in_nothing():
    pods = read_pods()
    assert pods["Master"] == pods["Worker"]


def test_skypilot_accepts_its_template():
    sky = pytest.importorskip("sky", reason="make clusters installs SkyPilot")
    task = sky.Task.from_yaml(str(SKYPILOT))
    assert task.num_nodes == 2


def test_kubeflow_knows_every_field_of_its_template():
    models = pytest.importorskip("kubeflow.training", reason="make clusters installs it").models
    kubernetes = pytest.importorskip("kubernetes.client")

    def check(value: Any, kind: str) -> None:
        """Every key of `value` is a field of the type that the API names `kind`."""
        if kind.startswith("list["):
            for item in value:
                check(item, kind[5:-1])
        elif kind.startswith("dict("):
            for item in value.values():
                check(item, kind[5:-1].split(", ")[1])
        elif cls := getattr(models, kind, None) or getattr(kubernetes, kind, None):
            fields = {name: cls.openapi_types[key] for key, name in cls.attribute_map.items()}
            assert value.keys() <= fields.keys(), kind
            for name, item in value.items():
                check(item, fields[name])

    check(yaml.safe_load(PYTORCHJOB.read_text()), "KubeflowOrgV1PyTorchJob")
