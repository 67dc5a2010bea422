"""What starts a run: train.sh, accelerate_configs/slurm.sh, and the commands of two pages of docs/.

Nothing is trained but in the slow test: the programs that they call say what they were asked to do.
How `flame-accel train` plans a launch is tested in unit/commands/test_train.py.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands import launch

from flame_accel.commands.train import resolve_accelerate_launch
from flame_accel.config import parse
from flame_accel.config.schema import options
from tests.helpers.accelerate_configs import NAMES
from tests.helpers.runs import ROOT, TINY_GLA, launch_environment

# stands in for accelerate's launcher: prints what it was asked to do
LAUNCHER = """\
import argparse, os

def launch_command_parser():
    parser = argparse.ArgumentParser(add_help=False)
    parser.parse_args = lambda words: argparse.Namespace(words=words)
    return parser

def launch_command(arguments):
    print(*arguments.words, f"threads={os.environ['OMP_NUM_THREADS']}", sep="\\n")
"""


@pytest.fixture
def train_sh(tmp_path):
    """`train_sh(*options, **environment)`: what a copy of train.sh prints, without training."""
    checkout, tools = tmp_path / "checkout", tmp_path / "bin"
    checkout.mkdir()
    tools.mkdir()
    for name in ("train.sh", "setup_environment.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "flame_accel").symlink_to(ROOT / "flame_accel")
    launcher = checkout / "accelerate/commands/launch.py"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(LAUNCHER)
    for folder in (checkout / "accelerate", launcher.parent):
        (folder / "__init__.py").touch()
    python = tools / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)

    def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{tools}:{launch_environment()['PATH']}"
        return subprocess.run(
            ["bash", str(checkout / "train.sh"), *options],
            env=launch_environment(PATH=path, **environment),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_train_sh_launches_what_the_environment_says(train_sh):
    done = train_sh("--training.steps", "40", ACCELERATE_CONFIG="fsdp2", NGPU="4")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    flags = dict(itertools.pairwise(words))
    assert Path(flags["--config_file"]).resolve() == ROOT / "accelerate_configs/fsdp2.yaml"
    assert (flags["--num_processes"], flags["--mixed_precision"]) == ("4", "no")
    script = next(i for i, word in enumerate(words) if word.endswith("train_process.py"))
    assert words[script + 1 :] == [
        *("--job.config_file", "quickstart", "--training.steps", "40", "threads=1")
    ]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_CONFIG": "fsdp3"}, ["fsdp3", *NAMES]),
        ({"NNODE": "2"}, ["MASTER_ADDR"]),
    ],
)
def test_train_sh_refuses_what_cannot_be_launched(train_sh, environment, said):
    done = train_sh(**environment)
    assert (done.returncode, done.stdout) == (2, "")
    for words in said:
        assert words in done.stderr


def test_train_sh_prints_the_options(train_sh):
    done = train_sh("-h")
    assert done.returncode == 0 and "--training.steps" in done.stdout, done.stderr


# what the cluster's programs do, as far as the script needs it
STUBS = {
    "scontrol": 'test "$*" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"',
    "srun": 'shift\nfor SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
    "accelerate": 'printf "%s\\n" "$@" "threads=$OMP_NUM_THREADS" end',
    "python": 'printf "%s " "$@" >&2',
}


@pytest.fixture
def sbatch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`sbatch(*options)`: what accelerate_configs/slurm.sh starts on a cluster of stubs."""
    (tmp_path / "cluster").mkdir()
    for name, body in STUBS.items():
        path = tmp_path / "cluster" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        job = {
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "4200017",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "64",
            "PATH": f"{tmp_path / 'cluster'}:{os.environ['PATH']}",
        }
        return subprocess.run(
            ["bash", str(ROOT / "accelerate_configs/slurm.sh"), *options],
            env={**job, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_the_slurm_script_starts_a_launcher_on_every_machine(sbatch):
    done = sbatch("--job.config_file", "my run.toml")
    assert done.returncode == 0, done.stderr
    assert "-m flame_accel.config --job.config_file my run.toml" in done.stderr
    launches = [launch.split("\n") for launch in done.stdout.split("\nend\n") if launch]
    for rank, words in enumerate(launches):
        assert words[words.index("train.py") :] == [
            *("train.py", "--job.config_file", "my run.toml", "threads=8"),
        ]
        for flag, value in {
            "--config_file": "accelerate_configs/multi_node.yaml",
            "--num_machines": "2",
            "--machine_rank": str(rank),
            "--num_processes": "16",
            "--main_process_ip": "node1",
            "--main_process_port": "20017",
        }.items():
            assert words[words.index(flag) + 1] == value
    assert len(launches) == 2


def test_the_slurm_script_takes_another_engine_and_stops_at_wrong_options(sbatch, tmp_path):
    assert "accelerate_configs/zero3.yaml" in sbatch(ACCELERATE_CONFIG="zero3").stdout
    (tmp_path / "cluster/python").write_text("#!/bin/sh\nexit 2\n")
    done = sbatch("--training.stepz", "3")
    assert (done.returncode, done.stdout) == (2, "")


PAGES = [
    (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("engines.md", "cluster.md")
]
# tests/docs/test_cluster_templates.py has the files that these send
OTHER_CLUSTERS = ("kubectl ", "sky ")
LINES = [
    line
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if not line.startswith(OTHER_CLUSTERS)
]


def options_of(words: list[str], script: str) -> list[str]:
    """What follows the script."""
    return words[next(i for i, word in enumerate(words) if word.endswith(script)) + 1 :]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_the_commands_of_the_page_are_accepted(line, sbatch, tmp_path, monkeypatch):
    words = shlex.split(line)
    given = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = words[len(given) :]
    if words[:2] == ["pip", "install"]:
        assert (ROOT / words[-1]).is_file()
        return
    if words[0] == "sbatch":
        script = next(i for i, word in enumerate(words) if word.endswith("slurm.sh"))
        # flags of sbatch that the script does not have itself are not flags
        own = (ROOT / words[script]).read_text()
        assert all(f"#SBATCH {word}" in own for word in words[:script] if word.startswith("--"))
        options = words[script + 1 :]
        assert "--machine_rank\n1\n" in sbatch(*options).stdout
    elif words[0] == "accelerate":
        arguments = launch.launch_command_parser().parse_args(words[2:])
        assert launch._validate_launch_command(arguments)[0].num_processes >= 4
        options = arguments.training_script_args
    else:
        flags = dict(
            itertools.pairwise(resolve_accelerate_launch(given, num_gpus=0, num_cores=2).flags)
        )
        assert flags["--num_processes"] == str(
            int(given.get("NGPU", "1")) * int(given.get("NNODE", "1"))
        )
        options = options_of(words, "train.sh")
    run_file = {"model": {"config": "org/model"}, "training": {"dataset": "python-stdlib"}}
    (tmp_path / "run.json").write_text(json.dumps(run_file))
    monkeypatch.chdir(tmp_path)
    parse(["run.json" if word == "run.toml" else word for word in options])


def test_the_page_tells_of_every_file_and_of_real_options():
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", PAGES[0], re.MULTILINE)
    assert set(NAMES) == {cell.strip("`") for cell, _ in rows if cell.strip("`") in NAMES}
    named = set(
        re.findall(r"`(?:--)?((?:training|comm|activation_checkpoint)\.\w+)`", "".join(PAGES))
    )
    assert len(named) > 8 and named <= set(options())


# text of the page -> a smaller replacement
SMALLER = {
    "NGPU=8": "NGPU=4",
    "accelerate launch": "accelerate launch --num_processes 8 --mixed_precision no",
}
# several machines are in test_nodes_equal_one_process.py, the cluster's in the tests above; this
# suite has DeepSpeed
ELSEWHERE = ("NNODE=", "multi_node", "sbatch", "pip install")
RUN_FILE = """\
[model]
config = "model.json"
tokenizer_path = "byte"
[training]
dataset = "corpus.jsonl"
batch_size = 1
seq_len = 32
steps = 2
warmup_steps = 1
num_workers = 0
[evaluation]
sample_tokens = 0
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [line for line in LINES if not any(word in line for word in ELSEWHERE)]
)
def test_the_commands_of_the_page_train(line, corpus, tmp_path):
    for name in (
        *("train.sh", "setup_environment.sh", "requirements.txt", "pyproject.toml", "train.py"),
    ):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("flame_accel", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(corpus, tmp_path / "corpus.jsonl")
    (tmp_path / "run.toml").write_text(RUN_FILE)
    (tmp_path / "model.json").write_text(json.dumps(TINY_GLA | {"hidden_size": 64, "num_heads": 4}))
    (tmp_path / "bin").mkdir()
    for name, words in (("python", ""), ("accelerate", "-m accelerate.commands.accelerate_cli")):
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        path.chmod(0o755)
    for text, replacement in SMALLER.items():
        line = line.replace(text, replacement)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env=launch_environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert (tmp_path / "exp/hf/model.safetensors").is_file()
