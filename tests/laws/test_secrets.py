"""Access tokens and passwords in options reach no file of a run, no log and no error."""

import json
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from flame_accel.config import ConfigError, UserError, load_run_file, parse
from flame_accel.observe.console import (
    add_log_file_with_earlier_lines,
    get_logger,
    setup_console_logging,
)
from tests.helpers.runs import SHORT_RUN, launch, read_losses

TOKEN = "hf_" + "Zq7" * 11
PASSWORD = "tr0ub4dor"
SIGNATURE = "0a1b2c3d4e5f"
URL = f"https://someone:{PASSWORD}@host.example/x?X-Amz-Date=7&X-Amz-Signature={SIGNATURE}"
SECRETS = (TOKEN, PASSWORD, SIGNATURE)


@pytest.fixture
def secret_options(corpus: Path, tiny_model: Path, tmp_path: Path) -> dict[str, object]:
    """Options with a secret wherever a text can hold one, inputs among them."""
    folder = tmp_path / TOKEN / "inputs"
    folder.mkdir(parents=True)
    for file in (corpus, tiny_model):
        shutil.copy(file, folder)
    return {
        **SHORT_RUN,
        "job.description": f"from {URL}",
        "model.config": folder / tiny_model.name,
        "training.dataset": f"{folder / corpus.name},{folder}",
        "training.data_files": ",*.jsonl",
        "training.data_probs": "0.5,0.5",
        "evaluation.dataset": folder / corpus.name,
        "evaluation.sample_tokens": 4,
        "evaluation.prompt": f"{TOKEN} and {URL}",
        "hub.model_name": TOKEN,
        "hub.tags": TOKEN,
        "metrics.enable_tensorboard": True,
        "metrics.enable_wandb": True,
        "job.print_args": True,
    }


def assert_without_secrets(text: str | bytes, where: object) -> None:
    content = text.encode() if isinstance(text, str) else text
    for secret in SECRETS:
        assert secret.encode() not in content, (secret, where)
        assert quote(secret).encode() not in content, (secret, where)


def test_no_file_of_a_run_and_no_line_of_it_has_a_secret(flags, secret_options, tmp_path):
    run_folder = tmp_path / "run"
    argv = flags(**secret_options)
    printed = launch(argv, config="cpu", processes=1, WANDB_MODE="offline")
    printed += launch(
        [*argv, "--training.steps=3", "--optimizer.lr=0.5"],
        config="cpu",
        processes=1,
        fails=True,
        WANDB_MODE="offline",
    )
    assert_without_secrets(printed, "console")
    paths = [path for path in run_folder.rglob("*") if path.is_file()]
    assert {"config.toml", "log.txt", "README.md", "report.html"} <= {each.name for each in paths}
    assert any("wandb" in each.parts for each in paths)
    for path in paths:
        assert_without_secrets(path.read_bytes(), path)
        assert_without_secrets(str(path), path)


def test_a_run_is_repeated_from_its_config_once_the_secrets_are_given_again(
    train_here, flags, secret_options, tmp_path
):
    del secret_options["metrics.enable_wandb"]
    train_here(flags(**secret_options))
    losses = read_losses(tmp_path / "run")
    recorded = tmp_path / "config.toml"
    shutil.copy(tmp_path / "run/config.toml", recorded)
    with pytest.raises(ConfigError) as raised:
        parse(["--job.config_file", str(recorded)])
    message = str(raised.value)
    assert_without_secrets(message, "error")
    secret = [name for name, value in secret_options.items() if has_secret(value)]
    assert len(raised.value.problems) == len(secret)
    for name in secret:
        assert f"Give the whole value again: --{name}" in message
    again = [f"--{name}={secret_options[name]}" for name in secret]
    moved = f"--job.dump_folder={tmp_path / 'again'}"
    train_here(["--job.config_file", str(recorded), *again, moved])
    assert read_losses(tmp_path / "again") == losses


def has_secret(value: object) -> bool:
    return any(secret in str(value) for secret in SECRETS)


def test_the_same_data_under_another_signature_is_the_same_run(
    train_here, flags, secret_options, tmp_path
):
    options = {**secret_options, "checkpoint.enable_checkpoint": True}
    del options["metrics.enable_wandb"]
    train_here(flags(**options))
    renewed = {"job.description": f"from {URL.replace(SIGNATURE, 'feedbeef')}"}
    train_here(flags(**{**options, **renewed, "training.steps": 4}))
    last_start = json.loads((tmp_path / "run/environment.json").read_text())["starts"][-1]
    assert [each["option"] for each in last_start["changed_options"]] == ["training.steps"]
    assert load_run_file(tmp_path / "run/config.toml").training.steps == 4


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"data/{TOKEN}/x", "data/[secret]/x"),
        (URL, "https://[secret]@host.example/x?[secret]"),
        (f"s3://b/x?Signature={SIGNATURE},json", "s3://b/x?[secret],json"),
        ("hf://datasets/a/b@main/x.json", None),
        ("https://host.example/x?download=true", None),
        ("data/hf_transformers/*.jsonl", None),
        ("a/b@v1.0", None),
    ],
)
def test_what_is_masked(text: str, masked: str | None):
    assert str(UserError(text)) == (masked or text)


def test_what_any_module_logs_is_masked_on_every_handler(capsys, tmp_path):
    logger = get_logger()
    setup_console_logging(main_process=True)
    logger.getChild("models.some").warning("see %s", URL)
    add_log_file_with_earlier_lines(tmp_path / "log.txt")
    logger.info("and %s", TOKEN)
    logger.handlers.clear()
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert "https://[secret]@host.example" in text and "and [secret]" in text
        assert_without_secrets(text, "log")


def test_the_token_of_the_environment_is_masked_whatever_it_looks_like(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "plain-words")
    assert str(UserError("no", where="a/plain-words/b")) == "a/[secret]/b: no"
