"""Sources are merged: later ones win, names of the same option must agree."""

from pathlib import Path

import pytest

from flame_accel.config import Config, parse
from tests.helpers.options import REQUIRED, only_problem, parse_flags, refusal


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_flames_decay_ratio_asks_for_wsd(shape: str) -> None:
    flags = ["--lr_scheduler.decay_ratio", "0.3", "--lr_scheduler.decay_type", shape]
    optimizer = parse_flags("--optimizer.scheduler", "wsd", *flags).optimizer
    assert (optimizer.scheduler, optimizer.decay_ratio, optimizer.decay_type) == ("wsd", 0.3, shape)


def test_two_names_of_one_option_must_agree() -> None:
    alias = ["--lr_scheduler.warmup_steps", "10"]
    assert parse_flags(*alias, "--training.warmup_steps", "10").training.warmup_steps == 10
    message = refusal(*alias, "--training.warmup_steps", "20")
    assert "--lr_scheduler.warmup_steps = 10" in message
    assert "--training.warmup_steps = 20" in message
    message = refusal("--optimizer.scheduler", "wsd", "--lr_scheduler.decay_type", "cosine")
    assert '--lr_scheduler.decay_type = "cosine"' in message
    assert '--optimizer.scheduler = "wsd"' in message


def test_flames_sqrt_decay_needs_a_ratio() -> None:
    assert "lr_scheduler.decay_ratio" in only_problem("--lr_scheduler.decay_type", "sqrt")


def test_an_option_in_the_wrong_section_is_found() -> None:
    assert "Did you mean --optimizer.lr?" in only_problem("--training.lr", "1e-3")
    assert "Did you mean --training.seq_len?" in only_problem("--seq_len=1")
    assert "-h all" in only_problem("--something.else", "1")


def parsed(path: Path, *flags: str) -> Config:
    return parse([*REQUIRED, "--job.config_file", str(path), *flags])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.covers_option("job.config_file")
def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "[training]\nsteps = 500\nseq_len = 64\nvarlen = true\n")
    config = parsed(path, "--training.steps", "600", "--training.no_varlen")
    assert (config.training.steps, config.training.seq_len) == (600, 64)
    assert config.training.varlen is False
    assert config.training.batch_size == Config().training.batch_size
    assert config.job.config_file == str(path)


def test_the_last_run_file_counts_and_none_takes_it_away(tmp_path: Path) -> None:
    one = write(tmp_path / "one.toml", "[training]\nseq_len = 32\n")
    two = write(tmp_path / "two.toml", "[training]\nsteps = 500\n")
    config = parsed(one, "--job.config_file", str(two))
    assert (config.training.seq_len, config.training.steps) == (2048, 500)
    assert parsed(one, "--job.config_file", "none").training.seq_len == 2048


def test_flames_own_run_file_is_understood(tmp_path: Path) -> None:
    text = """
[model]
converters = []
print_after_conversion = false
[optimizer]
name = "AdamW"
eps = 1e-15
lr = 3e-4
implementation = "foreach"
[lr_scheduler]
warmup_steps = 1024
decay_type = "cosine"
lr_min = 0.1
[training]
batch_size = 32
seq_len = 2048
context_len = 2048
steps = 20480
data_parallel_shard_degree = -1
[experimental]
context_parallel_degree = 1
custom_model_path = ""
[checkpoint]
keep_latest_k = 2
exclude_from_loading = []
"""
    path = write(tmp_path / "fla.toml", text)
    config = parsed(path)
    assert (config.optimizer.scheduler, config.training.warmup_steps) == ("cosine", 1024)
    assert (config.optimizer.fused, config.optimizer.min_lr_ratio) == (False, 0.1)
    # across sources the later one wins, whichever name it uses
    config = parsed(path, "--training.warmup_steps", "9", "--lr_scheduler.decay_ratio", "0.2")
    assert (config.optimizer.scheduler, config.training.warmup_steps) == ("wsd", 9)
    assert (config.optimizer.decay_ratio, config.optimizer.decay_type) == (0.2, "cosine")
    config = parsed(path, "--optimizer.scheduler", "linear", "--lr_scheduler.warmup_steps", "8")
    assert (config.optimizer.scheduler, config.training.warmup_steps) == ("linear", 8)
