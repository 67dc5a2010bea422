"""Runs of a sweep differ in model and varied values alone, and are checked before they start."""

import json
from pathlib import Path

import pytest

from flame_accel.commands.sweep_plan import PlannedRun, plan_runs
from flame_accel.config import ConfigError, UsageError
from flame_accel.config.schema import option_value, options


def plan(
    tmp_path: Path, *, recipes: tuple[str, ...] = ("mqar_small",), **given
) -> list[PlannedRun]:
    arguments = {"models": [], "varied": [], "options": [], **given}
    return plan_runs(recipes, output=tmp_path, **arguments)


def differences(first: PlannedRun, second: PlannedRun) -> set[str]:
    return {
        name
        for name in options()
        if option_value(first.config, name) != option_value(second.config, name)
    }


def test_models_differ_in_nothing_else(tmp_path: Path) -> None:
    custom = tmp_path / "mine.json"
    custom.write_text('{"model_type": "gla"}')
    models = ["gla", "delta_net", "gla_1M", str(custom)]
    runs = plan(tmp_path, models=models, options=["--training.steps=700"])
    assert [run.name for run in runs] == ["gla", "delta_net", "gla_1M", "mine"]
    assert [run.folder for run in runs] == [tmp_path / "mqar_small" / run.name for run in runs]
    for run in runs:
        assert differences(runs[0], run) <= {"model.config", "job.dump_folder"}
        assert run.config.training.steps == 700
    written = json.loads(Path(str(runs[0].config.model.config)).read_text())
    assert (written["model_type"], written["hidden_size"]) == ("gla", 64)


def test_varied_values_are_combined(tmp_path: Path) -> None:
    runs = plan(tmp_path, varied=["optimizer.lr=1e-3,3e-4", "training.seed=1,2"])
    assert [run.name for run in runs] == [
        "delta_net_140K-lr=1e-3-seed=1",
        "delta_net_140K-lr=1e-3-seed=2",
        "delta_net_140K-lr=3e-4-seed=1",
        "delta_net_140K-lr=3e-4-seed=2",
    ]
    values = [(run.config.optimizer.lr, run.config.training.seed) for run in runs]
    assert values == [(1e-3, 1), (1e-3, 2), (3e-4, 1), (3e-4, 2)]
    assert differences(runs[0], runs[3]) == {
        "optimizer.lr",
        "training.seed",
        "job.dump_folder",
    }


def test_several_recipes_have_a_folder_each(tmp_path: Path) -> None:
    runs = plan(tmp_path, recipes=("mqar_small", "quickstart"), models=["gla_1M"])
    assert [(run.recipe, run.folder.parent.name) for run in runs] == [
        ("mqar_small", "mqar_small"),
        ("quickstart", "quickstart"),
    ]


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr = -1"):
        plan(tmp_path, varied=["optimizer.lr=1e-3,-1"])
    with pytest.raises(UsageError, match=r"did you mean optimizer\.lr="):
        plan(tmp_path, varied=["optimizer.lrr=1"])
    with pytest.raises(UsageError, match=r"is not SECTION\.OPTION=VALUE"):
        plan(tmp_path, varied=["optimizer.lr"])
    with pytest.raises(UsageError, match="two runs would have the folder"):
        plan(tmp_path, models=["gla_1M", "gla_1M"])
    with pytest.raises(ConfigError, match="is neither a file nor a recipe"):
        plan(tmp_path, recipes=("mqar_smal",))
