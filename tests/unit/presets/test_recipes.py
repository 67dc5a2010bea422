"""Recipes that set job.use_for_integration_test run, for a few steps."""

from pathlib import Path

import pytest

from flame_accel.config import load_run_file
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
