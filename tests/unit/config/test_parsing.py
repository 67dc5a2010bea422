"""All problems are reported at once, and none twice."""

from pathlib import Path

import pytest

from flame_accel.config import ConfigError, load_run_file
from tests.helpers.options import config_error


def test_all_problems_of_all_sources_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        "[training]\nseq_len = 1\nstepps = 5\nbatch_size = true\n[metrics]\nlog_freq = 0\n"
    )
    error = config_error(
        [
            f"--job.config_file={path}",
            "--optimizer.lr=fast",
            "--experimental.enable_compiled_autograd",
            "--model.confg=x",
        ]
    )
    assert [problem.where for problem in error.problems] == [
        f"{path}:3: training.stepps",
        f"{path}:4: training.batch_size",
        "--optimizer.lr",
        "--model.confg",
        f"{path}:2: training.seq_len",
        f"{path}:6: metrics.log_freq",
        "--experimental.enable_compiled_autograd",
        "--training.dataset",
    ]
    assert str(error).startswith("8 problems in the configuration:\n")


def test_what_could_not_be_read_raises_no_second_problem(tmp_path: Path) -> None:
    broken = tmp_path / "run.toml"
    broken.write_text("[model\n")
    flags = [f"--job.config_file={broken}", "--training.steps", "0", "--training.warmup_steps", "5"]
    error = config_error(flags)
    assert [problem.where for problem in error.problems] == [f"{broken}:1", "--training.steps"]


def test_a_run_file_alone_is_checked_but_its_paths_are_not_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[model]\nconfig = "/gone/config.json"\n[training]\ndataset = "python-stdlib"\n'
    )
    assert load_run_file(path).model.config == "/gone/config.json"
    path.write_text("[model]\nconfig = 'org/model'\n")
    with pytest.raises(ConfigError, match=r"training\.dataset: is required"):
        load_run_file(path)
