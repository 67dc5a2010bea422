"""Bad input of every kind: an error of one screen that says what, where and the remedy."""

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from flame_accel.__main__ import main as run_command
from flame_accel.config import parse_or_exit
from flame_accel.config.errors import exit_on_user_error
from tests.helpers.runs import ROOT, TINY_GLA, launch_environment, run_python

Files = dict[str, str | bytes]
SCREEN_LINES = 24


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


GOOD_RECORDS = jsonl(*({"text": f"document {i}"} for i in range(8)))

# name: (changed options, files to write first, what the message must say)
CONFIGURATION: dict[str, tuple[dict[str, Any], Files, str]] = {
    "unknown flag": ({"training.sequence_len": 64}, {}, r"training\.seq_len"),
    "unknown section": ({"trainin.steps": 64}, {}, r"training\.steps"),
    "word for a number": ({"training.steps": "ten"}, {}, "'?ten'?"),
    "fraction for a whole number": ({"training.steps": 2.5}, {}, r"2\.5"),
    "seq_len 0": ({"training.seq_len": 0}, {}, r"training\.seq_len"),
    "seq_len 1": ({"training.seq_len": 1}, {}, r"training\.seq_len"),
    "no rows": ({"training.batch_size": 0}, {}, r"training\.batch_size"),
    "no steps": ({"training.steps": 0}, {}, r"training\.steps"),
    "no accumulation": ({"training.gradient_accumulation_steps": 0}, {}, "accumulation"),
    "negative rate": ({"optimizer.lr": -1}, {}, r"optimizer\.lr"),
    "rate is not a number": ({"optimizer.lr": "nan"}, {}, r"optimizer\.lr"),
    "warm-up longer than the run": ({"training.warmup_steps": 99}, {}, r"warmup_steps"),
    "context longer than a row": (
        {"training.varlen": True, "training.context_len": 65},
        {},
        r"context_len",
    ),
    "decay of more than all": ({"optimizer.decay_ratio": 1.5}, {}, r"decay_ratio"),
    "floor above the rate": ({"optimizer.min_lr_ratio": 2}, {}, r"min_lr_ratio"),
    "unknown scheduler": ({"optimizer.scheduler": "cosin"}, {}, "cosine"),
    "unknown optimizer": ({"optimizer.name": "AdamV"}, {}, "AdamW"),
    "unknown kernels": ({"model.kernels": "cuda"}, {}, "triton"),
    "neither true nor false": ({"training.varlen": "maybe"}, {}, "maybe"),
    "log never": ({"metrics.log_freq": 0}, {}, r"log_freq"),
    "no model": ({"model.config": None}, {}, r"model\.config"),
    "no data": ({"training.dataset": None}, {}, r"training\.dataset"),
    "model file is not there": ({"model.config": "{tmp}/none.json"}, {}, r"none\.json"),
    "data file is not there": ({"training.dataset": "{tmp}/none.jsonl"}, {}, r"none\.jsonl"),
    "run file is not there": ({"job.config_file": "{tmp}/none.toml"}, {}, r"none\.toml"),
    "run file is no TOML": (
        {"job.config_file": "{tmp}/run.toml"},
        {"run.toml": "[training]\nsteps = \n"},
        r"run\.toml:2",
    ),
    "run file with an unknown key": (
        {"job.config_file": "{tmp}/run.toml"},
        {"run.toml": "[training]\n\nstepz = 4\n"},
        r"run\.toml:3.*steps",
    ),
    "run file with a wrong type": (
        {"job.config_file": "{tmp}/run.yaml"},
        {"run.yaml": "training:\n  seq_len: long\n"},
        r"run\.yaml:2",
    ),
    "run folder is a file": (
        {"job.dump_folder": "{tmp}/occupied"},
        {"occupied": ""},
        r"job\.dump_folder",
    ),
    "run folder below a file": (
        {"job.dump_folder": "{tmp}/occupied/run"},
        {"occupied": ""},
        r"job\.dump_folder",
    ),
    "context parallelism": ({"experimental.context_parallel_degree": 2}, {}, "linear attention"),
    "compiled backward": (
        {"experimental.enable_compiled_autograd": True},
        {},
        r"experimental\.enable_compiled_autograd",
    ),
}

RUN: dict[str, tuple[dict[str, Any], Files, str]] = {
    "model file is no JSON": (
        {"model.config": "{tmp}/model.json"},
        {"model.json": '{\n  "model_type": "gla",\n}'},
        r"model\.json:3",
    ),
    "model file is a list": (
        {"model.config": "{tmp}/model.json"},
        {"model.json": "[]"},
        r"model\.json",
    ),
    "model type is unknown": (
        {"model.config": "{tmp}/model.json"},
        {"model.json": '{"model_type": "gated_deltanett"}'},
        "gated_deltanet",
    ),
    "heads do not divide": (
        {"model.config": "{tmp}/model.json"},
        {"model.json": json.dumps({**TINY_GLA, "num_heads": 3})},
        "num_heads|heads",
    ),
    "more TP ranks than processes": (
        {"training.tensor_parallel_degree": 2},
        {},
        "tensor_parallel_degree",
    ),
    "tokenizer is not there": (
        {"model.tokenizer_path": "{tmp}/none"},
        {},
        "model.tokenizer_path|none",
    ),
    "data is empty": ({"training.dataset": "{tmp}/d.jsonl"}, {"d.jsonl": ""}, r"d\.jsonl"),
    "data has only empty documents": (
        {"training.dataset": "{tmp}/d.jsonl"},
        {"d.jsonl": jsonl(*[{"text": ""}] * 8)},
        "text",
    ),
    "bad JSON line": (
        {"training.dataset": "{tmp}/d.jsonl"},
        {"d.jsonl": GOOD_RECORDS + '{"text": "open\n' + GOOD_RECORDS},
        r"d\.jsonl.*9",
    ),
    "no text column": (
        {"training.dataset": "{tmp}/d.jsonl"},
        {"d.jsonl": jsonl(*[{"body": "a"}] * 8)},
        "body",
    ),
    "text column is not there": (
        {"training.dataset": "{tmp}/d.jsonl", "training.text_column": "body"},
        {"d.jsonl": GOOD_RECORDS},
        "body",
    ),
    "text is not UTF-8": (
        {"training.dataset": "{tmp}/d.txt"},
        {"d.txt": b"abc \xff\xfe"},
        r"UTF-8",
    ),
    "parquet is damaged": (
        {"training.dataset": "{tmp}/d.parquet"},
        {"d.parquet": b"PAR1 but no more"},
        r"d\.parquet",
    ),
    "fewer documents than rows": (
        {"training.dataset": "{tmp}/d.jsonl", "training.batch_size": 9},
        {"d.jsonl": GOOD_RECORDS},
        "8 documents.*9 rows",
    ),
    "no such split": (
        {"training.dataset": "python-stdlib", "training.dataset_split": "tests"},
        {},
        "validation",
    ),
    "a name that no hub can be asked for": (
        {"training.dataset": "nobody/nothing"},
        {},
        "nobody/nothing",
    ),
    "bos without a bos token": ({"training.add_bos": "always"}, {}, "add_bos"),
    "own module is not there": ({"model.custom": "{tmp}/own.py"}, {}, r"own\.py"),
    "own module raises": (
        {"model.custom": "{tmp}/own.py"},
        {"own.py": "\n\nraise RuntimeError('not today')\n"},
        r"not today",
    ),
    "triton without a device": ({"model.kernels": "triton"}, {}, r"triton|Triton"),
    "a checkpoint that is not there": ({"checkpoint.load_step": 5}, {}, "step 5"),
}


@pytest.fixture
def refusal(tmp_path, flags, capsys) -> Callable[..., str]:
    """The message of a run with changed options and files."""

    def refuse(action: Callable[[list[str]], None], changes: dict[str, Any], files: Files) -> str:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(data)
        placed = {
            name: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
            for name, value in changes.items()
        }
        with pytest.raises(SystemExit) as raised:
            action(flags(**placed))
        assert raised.value.code in (1, 2)
        return capsys.readouterr().err

    return refuse


def check_message(message: str, expected: str) -> None:
    assert re.search(expected, message, re.DOTALL), message
    assert len(message.strip().splitlines()) <= SCREEN_LINES, message
    assert "Traceback" not in message
    # a remedy stands on a line of its own, below what is wrong
    assert "\n    " in message, message


@pytest.mark.parametrize("case", CONFIGURATION)
def test_a_bad_configuration_is_refused_before_anything_runs(refusal, case):
    changes, files, expected = CONFIGURATION[case]
    check_message(refusal(parse_or_exit, changes, files), expected)


@pytest.mark.parametrize("case", RUN)
def test_bad_input_of_a_run_is_refused_with_a_remedy(refusal, train_here, case):
    changes, files, expected = RUN[case]

    def run(argv: list[str]) -> None:
        with exit_on_user_error():
            train_here(argv)

    check_message(refusal(run, changes, files), expected)


def test_a_tokenizer_without_an_end_of_document_is_refused(refusal, train_here, tmp_path):
    from transformers import AutoTokenizer

    from flame_accel.data import load_tokenizer

    tokenizer = load_tokenizer("byte", False)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    assert AutoTokenizer.from_pretrained(tmp_path / "endless").eos_token is None

    def run(argv: list[str]) -> None:
        with exit_on_user_error():
            train_here(argv)

    message = refusal(run, {"model.tokenizer_path": "{tmp}/endless"}, {})
    check_message(message, "eos")


@pytest.mark.parametrize(
    ("engine", "expected"),
    [("DEEPSPEED", "DeepSpeed.*no launcher"), ("MEGATRON_LM", "Megatron-LM has its own layers")],
)
def test_an_engine_that_is_not_there_is_refused(refusal, train_here, monkeypatch, engine, expected):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")

    def run(argv: list[str]) -> None:
        with exit_on_user_error():
            train_here(argv)

    check_message(refusal(run, {}, {}), expected)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["export", "{tmp}", "{tmp}/out"], "no complete checkpoint"),
        (["export", "{tmp}/none", "{tmp}/out"], "no such folder"),
        (["export", "{tmp}/none", "{tmp}"], "already exists"),
        (["report", "{tmp}"], r"metrics\.jsonl"),
    ],
)
def test_commands_refuse_what_they_cannot_use(tmp_path, capsys, argv, expected):
    with pytest.raises(SystemExit):
        run_command([word.replace("{tmp}", str(tmp_path)) for word in argv])
    check_message(capsys.readouterr().err, expected)


def test_train_sh_ends_with_code_2_and_without_the_launcher(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "train.sh"), "--training.stepz", "5", "--optimizer.lr", "fast"],
        env=launch_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    check_message(done.stderr, r"training\.steps.*optimizer\.lr|optimizer\.lr.*training\.steps")


def test_the_train_command_shows_a_late_error_without_the_launchers_traceback(tmp_path, tiny_model):
    data = tmp_path / "d.jsonl"
    data.write_text(GOOD_RECORDS)
    done = run_python(
        [
            *("-m", "flame_accel", "train", "--model.config", str(tiny_model)),
            *("--model.tokenizer_path", "byte", "--training.dataset", str(data)),
            *("--training.batch_size", "9", "--training.warmup_steps", "1"),
            *("--job.dump_folder", str(tmp_path / "run")),
        ]
    )
    assert done.returncode == 1
    check_message(done.stderr, "8 documents.*9 rows")
