"""Defaults that depend on other options: deterministic, and never in the way of a set value."""

from pathlib import Path

import pytest

from flame_accel.config import load_run_file, parse, to_toml
from flame_accel.config.derived_defaults import default_warmup_steps
from flame_accel.presets import RECIPES, find_preset
from tests.helpers.options import only_problem, parse_flags


def run_folder(*flags: str) -> str:
    return parse([*flags, "--model.tokenizer_path=byte"]).job.dump_folder


def own_run(tmp_path: Path, name: str = "own.toml") -> str:
    path = tmp_path / name
    path.write_text("model = {config = 'gla_1M'}\ntraining = {dataset = 'python-stdlib'}\n")
    return str(path)


@pytest.mark.parametrize(
    ("model", "dataset", "folder"),
    [
        ("gla_1M", "python-stdlib", "exp/gla_1M-python-stdlib"),
        ("configs/gla_1.3B.json", "org/data.v2", "exp/gla_1.3B-data"),
        ("org/model-1.3B", "org/some data", "exp/model-1.3B-some_data"),
        ("org/model", "a/b,c/d", "exp/model-b-d"),
    ],
)
def test_a_run_without_a_run_file_is_named_after_model_and_data(
    model: str, dataset: str, folder: str
) -> None:
    flags = ["--model.config", model, "--training.dataset", dataset]
    probs = ["--training.data_probs", "1,1"] if "," in dataset else []
    assert run_folder(*flags, *probs) == folder


def test_files_folders_and_patterns_name_the_data(tmp_path: Path) -> None:
    model = tmp_path / "tiny" / "config.json"
    model.parent.mkdir()
    model.write_text("{}")
    (tmp_path / "texts").mkdir()
    file = tmp_path / "texts" / "train.jsonl.gz"
    file.write_text("")
    for dataset, name in [(file, "train"), (file.parent, "texts"), (file.parent / "*.gz", "texts")]:
        folder = run_folder(f"--model.config={model}", f"--training.dataset={dataset}")
        assert folder == f"exp/tiny-{name}"


def test_another_configuration_of_a_dataset_is_another_run() -> None:
    assert (
        parse_flags("--training.dataset_name", "10BT").job.dump_folder
        == "exp/model-python-stdlib-10BT"
    )


def test_a_run_file_names_the_run_and_flags_that_replace_model_or_data_add_to_it(
    tmp_path: Path,
) -> None:
    run_file = f"--job.config_file={own_run(tmp_path)}"
    assert run_folder(run_file) == "exp/own"
    assert run_folder(run_file, "--optimizer.lr", "1e-3") == "exp/own"
    assert run_folder(run_file, "--model.config", "configs/gla_1M.json") == "exp/own"
    assert run_folder(run_file, "--model.config", "gla_340M") == "exp/own-gla_340M"
    assert run_folder(run_file, "--training.dataset", "org/data") == "exp/own-data"


def test_the_quickstart_keeps_its_folder() -> None:
    assert run_folder("--job.config_file", "quickstart") == "exp/quickstart"
    recipe = find_preset(RECIPES, "quickstart")
    assert recipe is not None
    assert load_run_file(recipe).job.dump_folder == "exp/quickstart"


def test_a_folder_that_is_set_is_kept(tmp_path: Path) -> None:
    assert parse_flags("--job.dump_folder", "exp").job.dump_folder == "exp"
    path = tmp_path / "own.toml"
    path.write_text("[job]\ndump_folder = 'mine'\n")
    assert parse_flags(f"--job.config_file={path}").job.dump_folder == "mine"


def test_the_resolved_configuration_holds_the_derived_values(tmp_path: Path) -> None:
    config = parse_flags("--training.steps", "50")
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert load_run_file(path) == config
    assert (config.job.dump_folder, config.training.warmup_steps) == (
        "exp/model-python-stdlib",
        10,
    )


@pytest.mark.parametrize(
    ("steps", "decay_ratio", "warmup_steps"),
    [(10_000, 0.1, 200), (1000, 0.1, 200), (100, 0.1, 20), (5, 0.1, 1), (1, 0.1, 0), (50, 1.0, 0)],
)
def test_the_warm_up_is_a_fifth_of_the_steps_at_most_200_and_fits(
    steps: int, decay_ratio: float, warmup_steps: int
) -> None:
    assert default_warmup_steps(steps, decay_ratio) == warmup_steps
    flags = ["--training.steps", str(steps), "--optimizer.decay_ratio", str(decay_ratio)]
    assert parse_flags(*flags).training.warmup_steps == warmup_steps


def test_a_warm_up_that_is_set_must_fit() -> None:
    message = only_problem("--training.steps", "5", "--training.warmup_steps", "200")
    assert (
        "training.warmup_steps (200)" in message and "must fit into training.steps (5)" in message
    )
    flags = ["--training.steps", "5", "--lr_scheduler.warmup_steps", "3"]
    assert parse_flags(*flags).training.warmup_steps == 3
