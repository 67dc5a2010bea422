"""Presets are found by name, a user's own file wins, and an unknown name gets the nearest ones."""

import subprocess
import sys

import pytest

from flame_accel.config import ConfigError, parse
from flame_accel.models import load_model_config
from flame_accel.presets import (
    ACCELERATE,
    MODELS,
    RECIPES,
    existing_else_preset_path_or_unchanged,
    find_preset,
    preset_names,
    suggest_presets,
)
from tests.helpers.runs import ROOT

FOLDERS = {RECIPES: "configs/recipes", MODELS: "configs", ACCELERATE: "accelerate_configs"}


@pytest.mark.parametrize("kind", FOLDERS, ids=lambda kind: kind.label)
def test_presets_are_the_files_of_the_visible_folder(kind):
    files = sorted((ROOT / FOLDERS[kind]).glob(f"*{kind.suffix}"))
    assert files and preset_names(kind) == [path.stem for path in files]
    for path in files:
        found = find_preset(kind, path.stem)
        assert found and found.resolve() == path
        assert find_preset(kind, path.name) == found


@pytest.mark.parametrize("name", ["gla_340", "models/gla_340M", "../configs/gla_340M", "", "."])
def test_only_the_whole_name_finds_a_preset(name):
    assert find_preset(MODELS, name) is None
    assert existing_else_preset_path_or_unchanged(MODELS, name) == name


def test_a_file_wins_over_a_preset_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert existing_else_preset_path_or_unchanged(MODELS, "gla_340M") == str(
        find_preset(MODELS, "gla_340M")
    )
    (tmp_path / "gla_340M").mkdir()
    # an empty folder, such as a run folder of that name, holds no model
    assert existing_else_preset_path_or_unchanged(MODELS, "gla_340M") == str(
        find_preset(MODELS, "gla_340M")
    )
    (tmp_path / "gla_340M/config.json").write_text("{}")
    assert existing_else_preset_path_or_unchanged(MODELS, "gla_340M") == "gla_340M"
    (tmp_path / "quickstart").write_text("")
    assert existing_else_preset_path_or_unchanged(RECIPES, "quickstart") == "quickstart"


def test_an_unknown_name_gets_the_nearest_presets():
    assert suggest_presets(MODELS, "gla-340m") == "Did you mean gla_340M?"
    assert "fsdp2" in suggest_presets(ACCELERATE, "fsdp3")
    names = ", ".join(preset_names(RECIPES))
    assert "quickstart" in names
    assert suggest_presets(RECIPES, "zebra") == f"Name a file, or one of: {names}."


def test_a_run_file_is_named_by_its_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse(["--job.config_file", "quickstart"])
    assert (config.model.config, config.training.dataset) == ("gla_1M", "python-stdlib")
    with pytest.raises(ConfigError, match=r"(?s)quickstrat.*mean quickstart\?"):
        parse(["--job.config_file", "quickstrat"])


def test_a_model_config_is_named_by_its_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = load_model_config(str(ROOT / "configs/gla_1M.json")).to_dict()
    assert load_model_config("gla_1M").to_dict() == expected
    given = ["--training.dataset", "python-stdlib", "--model.tokenizer_path=byte"]
    given.append("--model.config")
    assert parse([*given, "gla_1M.json"]).model.config == "gla_1M.json"
    with pytest.raises(ConfigError, match=r"gla_2M\.json does not exist"):
        parse([*given, "gla_2M.json"])
    with pytest.raises(ConfigError, match=r"(?s)gla_34OM.*Did you mean gla_340M"):
        parse([*given, "gla_34OM"])
    assert parse([*given, "org/gla_34OM"]).model.config == "org/gla_34OM"


def test_presets_are_found_without_torch():
    code = (
        "import sys; from flame_accel.presets import *; from flame_accel import presets;"
        "print(presets.preset_names(presets.RECIPES), {'torch', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == f"{preset_names(RECIPES)} set()", done.stderr
