"""Recipes are accepted and name their source; those that ask for it run, for a few steps."""

import re
from pathlib import Path

import pytest

from flame_accel.config import load_run_file, parse
from tests.helpers.runs import ROOT, read_records


def recipes_that_ask(folder: Path) -> list[Path]:
    """The run files of a folder that set job.use_for_integration_test."""
    return [
        path
        for path in sorted(folder.glob("*.toml"))
        if load_run_file(path).job.use_for_integration_test
    ]


TESTED = recipes_that_ask(ROOT / "configs/recipes")
SHORT = {
    "training.steps": 3,
    "training.warmup_steps": 1,
    "training.num_workers": 0,
    "evaluation.max_tokens": 1000,
    "evaluation.sample_tokens": 4,
}


RECIPES = sorted((ROOT / "configs/recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_valid_run_found_by_its_name_and_says_where_it_comes_from(recipe):
    config = parse(["--job.config_file", recipe.stem])
    assert config.job.description
    assert config.training.dataset
    text = recipe.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert recipe.stem == "quickstart" or re.search(r"arXiv \d{4}\.\d{5}", text)


def test_recipes_of_papers_read_as_many_tokens_as_the_papers():
    for name, tokens, warmup in (
        ("gla_340M_15B", 15e9, 0.5e9),
        ("gated_deltanet_1.3B_100B", 100e9, 1e9),
    ):
        training = load_run_file(ROOT / f"configs/recipes/{name}.toml").training
        rows = 8 * training.batch_size * training.gradient_accumulation_steps
        assert rows * training.seq_len == 2**19
        assert abs(training.steps * 2**19 - tokens) < 2**19
        assert abs(training.warmup_steps * 2**19 - warmup) < 2**19


def test_the_quickstart_is_tested():
    assert ROOT / "configs/recipes/quickstart.toml" in TESTED


@pytest.mark.covers_option("job.use_for_integration_test")
def test_only_recipes_that_ask_for_it_are_tested(tmp_path):
    rest = '[model]\nconfig = "a.json"\n[training]\ndataset = "b.jsonl"\n'
    for name, asked in (("a", "true"), ("b", "false"), ("c", None)):
        line = "" if asked is None else f"use_for_integration_test = {asked}\n"
        (tmp_path / f"{name}.toml").write_text(f"[job]\n{line}{rest}")
    assert recipes_that_ask(tmp_path) == [tmp_path / "a.toml"]


@pytest.mark.parametrize("recipe", TESTED, ids=lambda path: path.stem)
def test_a_recipe_trains_from_any_folder(train_here, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"job.config_file": recipe, "job.dump_folder": tmp_path / "run", **SHORT}
    train_here([f"--{name}={value}" for name, value in options.items()])
    assert max(record["step"] for record in read_records(tmp_path / "run")) == 3
    assert (tmp_path / "run/hf/model.safetensors").exists()
