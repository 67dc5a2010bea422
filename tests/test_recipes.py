"""Recipes that ask for it run, for a few steps; every file of accelerate_configs/ is read."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, read_records

from flame_accel.config import load_file

RECIPES = sorted((ROOT / "configs/recipes").glob("*.toml"))
TESTED = [path for path in RECIPES if load_file(path).job.use_for_integration_test]
SHORT = {
    "training.steps": 3,
    "training.warmup_steps": 1,
    "training.num_workers": 0,
    "evaluation.max_tokens": 1000,
    "evaluation.sample_tokens": 4,
}


def test_the_quickstart_is_tested():
    assert ROOT / "configs/recipes/quickstart.toml" in TESTED


@pytest.mark.parametrize("recipe", TESTED, ids=lambda path: path.stem)
def test_recipe(train_here, recipe, tmp_path, monkeypatch):
    # model configs are named relative to the project
    monkeypatch.chdir(ROOT)
    options = {"job.config_file": recipe, "job.dump_folder": tmp_path / "run", **SHORT}
    train_here([f"--{name}={value}" for name, value in options.items()])
    assert max(record["step"] for record in read_records(tmp_path / "run")) == 3
    assert (tmp_path / "run/hf/model.safetensors").exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_knows_every_key(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 1
    content = yaml.safe_load(path.read_text())
    # these have dangerous defaults: each file says what it wants
    assert {"mixed_precision", "num_processes", "num_machines", "use_cpu"} <= set(content)
    if content["distributed_type"] == "FSDP":
        fsdp = content["fsdp_config"]
        assert fsdp["fsdp_version"] == 2
        assert fsdp["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
        assert fsdp["fsdp_cpu_ram_efficient_loading"] is False
