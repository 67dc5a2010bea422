"""Every form in which a flag is accepted, and arguments that are not flags."""

from pathlib import Path

import pytest

from tests.helpers.options import REQUIRED, config_error, only_problem, parse_flags


@pytest.mark.parametrize(
    "flags",
    [
        ["--training.seq_len", "64"],
        ["--training.seq_len=64"],
        ["--training.seq-len", "64"],
        ["--training.seq-len=64"],
        ["--training.seq_len", "32", "--training.seq_len=64"],
    ],
)
def test_a_value_is_given_in_every_form(flags: list[str]) -> None:
    assert parse_flags(*flags).training.seq_len == 64


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--training.varlen"], True),
        (["--training.no_varlen"], False),
        (["--training.no-varlen"], False),
        (["--training.varlen=true"], True),
        (["--training.varlen=false"], False),
        (["--training.varlen", "True"], True),
        (["--training.varlen", "false"], False),
        (["--training.varlen", "--training.no_varlen"], False),
        (["--training.no_varlen", "--training.varlen"], True),
    ],
)
def test_a_boolean_is_given_in_every_form(flags: list[str], value: bool) -> None:
    assert parse_flags("--training.seq_len", "64", *flags).training.varlen is value


def test_negative_numbers_empty_text_and_none_are_values() -> None:
    flags = ["--training.data_parallel_shard_degree", "-1", "--evaluation.prompt", ""]
    config = parse_flags(*flags, "--training.text_column", "none", "--training.data_dir=")
    assert config.training.data_parallel_shard_degree == -1
    assert config.evaluation.prompt == ""
    assert config.training.text_column is None
    assert config.training.data_dir is None
    assert config.activation_checkpoint.mode == "none"


@pytest.mark.parametrize(
    "flags",
    [["--model.custom", "a,b"], ["--model.custom=a, b"], ["--model.custom", "a", "b"]],
)
def test_lists_take_commas_and_several_values(flags: list[str]) -> None:
    assert parse_flags(*flags).model.custom == ("a", "b")
    assert parse_flags(*flags, "--model.custom=").model.custom == ()


def test_negations_are_only_for_booleans() -> None:
    assert "there is no such option" in only_problem("--training.no_steps")
    assert "takes no value" in only_problem("--training.no_varlen=true")
    assert "Did you mean --training.no_varlen?" in only_problem("--training.no_varlem")


def test_what_belongs_to_no_option_is_refused() -> None:
    assert '"5"' in only_problem("--training.steps", "1000", "5")
    assert '"maybe"' in only_problem("--metrics.enable_wandb", "maybe")
    assert '"steps"' in str(config_error(["steps", *REQUIRED]))
    assert "needs a value" in only_problem("--training.steps", "--metrics.enable_wandb")
    assert "needs a value" in only_problem("--training.steps")


@pytest.mark.parametrize("name", ["run.yaml", "run.yml", "run.toml", "RUN.JSON", "notes"])
def test_a_run_file_without_its_flag_gets_the_flag(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("")
    behind_others = [["--training.varlen"], ["--job.config_file", "quickstart"]]
    for argv in ([str(path)], [str(path), *REQUIRED], *([*o, str(path)] for o in behind_others)):
        [problem] = config_error(argv).problems
        assert f"Did you mean --job.config_file {path}?" in problem.remedy


def test_a_run_file_that_does_not_exist_gets_the_flag_too() -> None:
    [problem] = config_error(["run.yaml"]).problems
    assert "Did you mean --job.config_file run.yaml?" in problem.remedy


@pytest.mark.parametrize("flag", ["--config", "--config-file", "--config_file"])
@pytest.mark.parametrize("join", [" ", "="])
def test_a_flag_of_other_programs_for_a_run_file_gets_ours(flag: str, join: str) -> None:
    [problem] = config_error(f"{flag}{join}run.yaml".split(" ")).problems
    assert problem.where == flag
    assert "Did you mean --job.config_file run.yaml" in problem.remedy


def test_a_pattern_that_the_shell_expanded_is_not_taken_for_a_run_file() -> None:
    problem = only_problem("--training.dataset", "python-stdlib", "b.json")
    assert "job.config_file" not in problem and "quote a value" in problem
