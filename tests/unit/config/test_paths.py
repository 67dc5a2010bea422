"""`~` and environment variables in every option that is a path, wherever it is set."""

from pathlib import Path

import pytest

from flame_accel.config import parse, to_toml
from flame_accel.config.paths import PathKind, expand_comma_separated_paths, expand_path
from flame_accel.config.schema import option_value, options
from tests.helpers.options import REQUIRED, only_problem, refusal

PATH_OPTIONS = [name for name, option in options().items() if option.path]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, in which everything that a test names exists."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.setenv("JOB", "17")
    (tmp_path / "a.toml").write_text("")
    (tmp_path / "b.toml").write_text("")
    return tmp_path


@pytest.mark.parametrize("written", ["~/a", "$HOME/a", "${SCRATCH}/a", "$SCRATCH/a"])
def test_home_and_variables_are_expanded(written: str, home: Path) -> None:
    assert expand_path(written) == f"{home}/a"


def test_other_text_stays_as_it_is() -> None:
    for text in ("", "byte", "org/model", "a~b", "./~", "cost 5$", "a/$", "python-stdlib"):
        assert expand_path(text) == text
    assert expand_path("run-$JOB") == "run-17"


def test_an_existing_path_is_taken_as_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (home / "$JOB").mkdir()
    (home / "$JOB,x").mkdir()
    assert expand_path("$JOB") == "$JOB"
    assert expand_comma_separated_paths("$JOB,x") == "$JOB,x"


def test_each_of_several_paths_is_expanded(home: Path) -> None:
    assert expand_comma_separated_paths("~/a, $HOME/b,org/data") == f"{home}/a, {home}/b,org/data"
    assert expand_comma_separated_paths("") == ""


@pytest.mark.parametrize("written", ["$NOT_SET/a", "~/${NOT_SET}"])
def test_a_variable_that_is_not_set_is_an_error(written: str) -> None:
    with pytest.raises(ValueError, match="the environment variable NOT_SET is not set"):
        expand_path(written)


def test_an_unknown_user_is_an_error() -> None:
    with pytest.raises(ValueError, match="home folder of ~no_such_user_here is not known"):
        expand_path("~no_such_user_here/a")


@pytest.mark.parametrize("name", PATH_OPTIONS)
def test_a_variable_that_is_not_set_is_refused_in_every_path_option(name: str) -> None:
    message = refusal(f"--{name}=$NOT_SET/a")
    assert f'--{name} = "$NOT_SET/a": the environment variable NOT_SET is not set' in message


@pytest.mark.parametrize("name", PATH_OPTIONS)
@pytest.mark.parametrize("suffix", ["toml", "yaml", "json", "flag"])
def test_every_path_option_is_expanded_from_flags_and_files(
    name: str, suffix: str, home: Path
) -> None:
    # folders inside the run folder must stay inside; the others may be anywhere
    inside = (name.endswith("_folder") and name != "job.dump_folder") or name == "checkpoint.folder"
    written, expanded = ("run-$JOB", "run-17") if inside else ("~/a.toml", f"{home}/a.toml")
    if name == "job.dump_folder":
        written, expanded = "$HOME/run", f"{home}/run"
    if name == "model.custom" or options()[name].path is PathKind.COMMA_SEPARATED:
        expanded = {"model.custom": (expanded,)}.get(name, expanded)
    section, _, key = name.partition(".")
    if suffix == "flag" or name == "job.config_file":
        argv = [f"--{name}={written}"]
    else:
        path = home / f"run.{suffix}"
        path.write_text(
            {
                "toml": f'[{section}]\n{key} = "{written}"\n',
                "yaml": f"{section}:\n  {key}: {written}\n",
                "json": f'{{"{section}": {{"{key}": "{written}"}}}}',
            }[suffix]
        )
        argv = [f"--job.config_file={path}"]
    required = [word for word in REQUIRED if word.partition("=")[0] != f"--{name}"]
    if len(required) < len(REQUIRED):
        required.remove("org/model" if name == "model.config" else "python-stdlib")
    if name == "model.config":
        required.append("--model.tokenizer_path=byte")
    config = parse([*required, *argv])
    assert option_value(config, name) == expanded
    assert "$" not in to_toml(config) and "~" not in to_toml(config)


def test_an_expanded_path_must_exist(home: Path) -> None:
    assert f"{home}/missing.json does not exist" in only_problem("--model.config=~/missing.json")
