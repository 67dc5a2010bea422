"""README.md and the pages of tasks are true: their commands run, and the tables are right.

Every command runs in the slow test, one after the other in one small copy of the checkout. Those of
README.md that need the quickstart alone run in the default suite too.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flame_accel.config import load_run_file, parse
from tests.helpers.runs import ROOT, launch_environment, read_records, run_python

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TASKS = (
    "train",
    "own_model",
    "continue",
    "sweep",
    "generate",
    "lm_eval",
    "run_folder",
    "hub",
    "migrate",
)
"""Pages of docs/ whose commands run after those of README.md, in this order."""
TASK_TEXTS = [(ROOT / f"docs/{page}.md").read_text(encoding="utf-8") for page in TASKS]
# later flags win: a run of seconds, without a network
TINY = {
    "training.batch_size": 2,
    "training.seq_len": 32,
    "training.steps": 4,
    "training.warmup_steps": 1,
    "training.num_workers": 0,
    "metrics.log_freq": 1,
    "model.tokenizer_path": "byte",
    "evaluation.max_tokens": 300,
    "evaluation.sample_tokens": 4,
}
# text of the page -> a smaller replacement
SMALLER = {
    "NGPU=8": "NGPU=2",
    "accelerate launch": "accelerate launch --num_processes 2 --mixed_precision no",
    "context_len 2048": "context_len 16",
    "step-300": "step-4",
    "tokenizer_path fla-hub/gla-1.3B-100B": "tokenizer_path byte",
    # there is no network
    "fla-hub/gla-340M-15B": "exp/quickstart/hf",
    "Qwen/Qwen3-0.6B@main": "exp/quickstart/hf",
    "lr_scheduler.warmup_steps 1024": "lr_scheduler.warmup_steps 1",
    "my_name/": "tester/",
    "zero_shot": "python_lines --include_path my_tasks",
    "ruler": "python_lines --include_path my_tasks",
}
# it runs this suite
NOT_RUN = {"bash test.sh"}
INSTALL = ("pip install ", "uv pip install ")
CHECK = "python -m flame_accel.config "
COMMANDS = (
    "python -m flame_accel data ",
    "python -m flame_accel doctor ",
    "python -m flame_accel evaluate ",
    "python -m flame_accel export ",
    "python -m flame_accel generate ",
    "python -m flame_accel models ",
    "python -m flame_accel prepare ",
    "python -m flame_accel push ",
    "python -m flame_accel report ",
    "python -m flame_accel sweep ",
)


class Block(NamedTuple):
    """A fenced block: its language, the file that the text above names, and its lines."""

    language: str
    file: str
    body: str


def read_blocks(text: str) -> list[Block]:
    """The blocks; one that shows a file has "... `name`:" or "`name` (...):" in the line above."""
    found = re.findall(r"([^\n]*)\n\n```(\w+)\n(.*?)```\n", text, re.DOTALL)
    names = [
        re.search(r"`([\w./]+\.(?:toml|jsonl?|py|yaml))`[^`]*:$", above) for above, _, _ in found
    ]
    return [
        Block(language, name[1] if name else "", body)
        for (_, language, body), name in zip(found, names, strict=True)
    ]


README_BLOCKS = read_blocks(TEXT)
BLOCKS = [*README_BLOCKS, *(block for text in TASK_TEXTS for block in read_blocks(text))]


def read_commands(block: Block) -> list[str]:
    """The commands of a bash block; a Python block that is no file is one command."""
    if block.language == "python" and not block.file:
        return [f"python -c {shlex.quote(block.body)}"]
    if block.language != "bash":
        return []
    return [line for line in block.body.replace("\\\n", " ").splitlines() if line]


def is_training(command: str) -> bool:
    starts = ("accelerate launch", "python -m flame_accel train", "flame-accel train")
    started = "bash train.sh" in command or command.startswith(starts)
    return started and not command.endswith(" -h") and " evaluate " not in command


def is_quick(command: str) -> bool:
    """The quickstart, and one command of each kind that needs no other run."""
    if is_training(command):
        return command == "bash train.sh"
    # evaluate draws its progress, and its data is another's
    starts = ("flame-accel", "python -m flame_accel sweep ", *INSTALL)
    needs_more = command.startswith(starts) or " --tasks " in command
    return not needs_more and "my_" not in command and "step-" not in command


def is_known(command: str) -> bool:
    beginnings = (
        "python -c ",
        "flame-accel -",
        "flame-accel train -h",
        "python -m lm_eval ",
        CHECK,
    )
    beginnings += (*COMMANDS, *INSTALL)
    known = command in NOT_RUN or command.startswith(beginnings)
    known |= command.startswith("accelerate launch") and " evaluate " in command
    return known or is_training(command) or command == "bash train.sh -h"


def shrink(fields: dict[str, Any]) -> dict[str, Any]:
    """A model config of the same architecture that trains in milliseconds."""
    return {**fields, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2}


@pytest.fixture
def checkout(tmp_path: Path, corpus: Path) -> Path:
    """A checkout with tiny GLA configs, the data that the page names, and no environment."""
    for pattern in ("*.py", "*.sh", "*.txt", "*.toml", "README.md", "LICENSE"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, tmp_path)
    for name in ("flame_accel", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for path in (tmp_path / "configs").glob("gla_*.json"):
        path.write_text(json.dumps(shrink(json.loads(path.read_text()))))
    (tmp_path / "my_data").mkdir()
    for name in ("train.jsonl", "validation.jsonl"):
        shutil.copy(corpus, tmp_path / "my_data" / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "my_prompts.txt").write_text("def \nclass \n")
    for name, arguments in (
        ("python", ""),
        ("accelerate", "-m accelerate.commands.accelerate_cli"),
    ):
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        path.chmod(0o755)
    make_installable(tmp_path)
    for block in BLOCKS:
        (tmp_path / block.file).parent.mkdir(exist_ok=True)
        if block.file.endswith(".json"):
            (tmp_path / block.file).write_text(json.dumps(shrink(json.loads(block.body))))
        elif block.file:
            (tmp_path / block.file).write_text(block.body)
    return tmp_path


def make_installable(checkout: Path) -> None:
    """Lets `pip` and `uv pip` install into an environment that sees the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / "env"], check=True)
    site = next((checkout / "env/lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = f"{shlex.quote(sys.executable)} -m pip --python {checkout}/env/bin/python"
    for name, start in (("pip", ""), ("uv", "shift\n")):
        path = checkout / "bin" / name
        path.write_text(
            f'#!/bin/sh\n{start}exec {pip} "$@" --quiet --no-deps --no-index --no-build-isolation\n'
        )
        path.chmod(0o755)


def make_small(command: str) -> str:
    for text, replacement in SMALLER.items():
        command = command.replace(text, replacement)
    taking_options = "python -m flame_accel data ", "python -m flame_accel sweep "
    if is_training(command) or command.startswith(taking_options):
        command += "".join(f" --{name}={value}" for name, value in TINY.items())
    return command


def run(command: str, checkout: Path, *, is_warm: bool = False, **hub: str) -> str:
    """Runs a command as a reader would, but small; returns what it printed.

    Args:
        command: A line of the page.
        checkout: The working folder.
        is_warm: A `python ...` is run where all is imported already.
        hub: Variables for the commands that talk to the Hub.
    """
    environment = launch_environment(
        PATH=f"{checkout / 'bin'}:{checkout / 'env/bin'}:{os.environ['PATH']}",
        WANDB_SILENT="true",
        **{"HF_HOME": str(checkout / "huggingface"), **(hub if "my_name/" in command else {})},
    )
    if is_warm:
        done = run_python(shlex.split(make_small(command))[1:], folder=checkout)
    else:
        done = subprocess.run(
            ["bash", "-c", make_small(command)],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    if is_quick(command) and not command.startswith("python -c "):
        # no line of another package, and none of ours where all is well
        assert done.stderr == "", command
    return done.stdout


def run_folder(command: str, checkout: Path) -> Path:
    """Where a training command writes."""
    words = shlex.split(command)
    given = dict(itertools.pairwise(words))
    if "--job.dump_folder" in given:
        return checkout / given["--job.dump_folder"]
    file = given.get("--job.config_file", "configs/recipes/quickstart.toml")
    return checkout / load_run_file(checkout / file).job.dump_folder


def run_all(commands: list[str], checkout: Path, *, are_warm: bool = False, **hub: str) -> None:
    """Runs commands in their order; each training leaves a model, a second one changes nothing."""
    for command in commands:
        if command in NOT_RUN:
            continue
        if not is_training(command):
            is_warm = are_warm and command.startswith(COMMANDS)
            printed = run(command, checkout, is_warm=is_warm, **hub)
            assert printed == "" or not command.startswith(CHECK)
            continue
        folder = run_folder(command, checkout)
        again = folder.exists()
        printed = run(command, checkout, **hub)
        assert (folder / "hf/model.safetensors").is_file(), command
        assert ("this run has finished, after step 4" in printed) == again, command
        if command == "bash train.sh":
            check_what_the_quickstart_shows(printed, read_records(folder))


def check_what_the_quickstart_shows(printed: str, records: list[dict[str, Any]]) -> None:
    """Lines begin as in the page's sample, and the page explains every key of the records."""
    sample = next(block.body for block in README_BLOCKS if block.body.startswith("devices:"))
    lines = set(re.findall(r"^[a-z ]+:|^step(?= +\d+/)", printed, re.MULTILINE))
    # the small run saves nothing before its end, of which this line speaks
    lines.add("checkpoints:")
    assert lines == set(re.findall(r"^[a-z ]+:|^step(?= +\d+/)", sample, re.MULTILINE))
    explained = set(re.findall(r"`([a-z_/]+)`", "".join(TASK_TEXTS)))
    assert {key for record in records for key in record} <= explained


README_COMMANDS = [command for block in README_BLOCKS for command in read_commands(block)]
ALL = [command for block in BLOCKS for command in read_commands(block)]


def test_a_file_that_two_pages_show_is_the_same():
    files = {(block.file, block.body) for block in BLOCKS if block.file}
    assert len(files) == len({name for name, _ in files})


def test_every_command_is_known():
    assert len(ALL) > 15
    assert [command for command in ALL if not is_known(command)] == []


def test_commands_that_are_not_run_here_exist():
    for script in ("train.sh", "test.sh", "setup_environment.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    assert ".venv" in (ROOT / "setup_environment.sh").read_text()
    assert (ROOT / "requirements.lock").is_file()


def test_the_options_of_every_training_are_accepted(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    for command in ALL:
        words = shlex.split(make_small(command))
        if is_training(command) and "--job.config_file" in words:
            parse(words[words.index("--job.config_file") :])


def test_the_quickstart_and_what_follows_from_it(checkout):
    run_all([command for command in README_COMMANDS if is_quick(command)], checkout, are_warm=True)


@pytest.mark.slow
def test_all_commands_in_their_order(checkout, local_hub):
    run_all(ALL, checkout, **local_hub.environment)


FAMILIES = re.findall(r"^\| `(\w+)` \| ([\d.,]+)M \| ([\d.,]+)M \|$", TEXT, re.MULTILINE)


def test_the_table_has_every_family():
    shipped = {path.stem for path in (ROOT / "configs").glob("*.json")}
    shipped -= {"gla_1M", "delta_net_140K"}
    assert shipped == {f"{row[0]}_{size}" for row in FAMILIES for size in ("340M", "1.3B")}


# RWKV-7 initializes channel by channel in Python: seconds, even without memory
@pytest.mark.parametrize(
    ("family", "small", "large"),
    [
        pytest.param(*row, id=row[0], marks=pytest.mark.slow if row[0] == "rwkv7" else ())
        for row in FAMILIES
    ],
)
def test_the_table_has_the_right_sizes(family, small, large):
    import torch

    from flame_accel.models import count_parameters, load_model_config, register_models
    from flame_accel.models.instantiate import instantiate_on_default_device

    register_models()
    for size, said in (("340M", small), ("1.3B", large)):
        with torch.device("meta"):
            model = instantiate_on_default_device(
                load_model_config(str(ROOT / f"configs/{family}_{size}.json"))
            )
        assert f"{count_parameters(model).total / 1e6:,.1f}" == said


@pytest.mark.parametrize("family", [row[0] for row in FAMILIES])
def test_every_family_trains_without_a_gpu(family, tmp_path):
    import torch

    from flame_accel import kernels
    from flame_accel.models import build_model, load_model_config, register_models

    kernels.install()
    register_models()
    fields = json.loads((ROOT / f"configs/{family}_340M.json").read_text())
    # RWKV-7 divides by the number of its other layers
    fields["num_hidden_layers"] = 2 if family == "rwkv7" else 1
    if fields.get("attn"):
        fields["attn"]["layers"] = [0]
    path = tmp_path / "model.json"
    path.write_text(json.dumps(fields))
    ids = torch.arange(80)[None]
    config = load_model_config(str(path))
    model = build_model(config, vocabulary_size=80, bos_token_id=None, eos_token_id=0, seed=0)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
