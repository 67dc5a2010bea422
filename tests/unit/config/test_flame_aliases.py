"""Flame's names of our options."""

import dataclasses

import pytest

from tests.helpers.options import parse_flags


@pytest.mark.parametrize(
    ("flags", "section", "key", "value"),
    [
        ("--lr_scheduler.warmup_steps 7", "training", "warmup_steps", 7),
        ("--lr_scheduler.lr_min 0.2", "optimizer", "min_lr_ratio", 0.2),
        ("--lr_scheduler.decay_type cosine", "optimizer", "scheduler", "cosine"),
        ("--lr_scheduler.decay_type linear", "optimizer", "scheduler", "linear"),
        ("--lr_scheduler.decay_ratio none", "optimizer", "scheduler", "linear"),
        ("--optimizer.implementation fused", "optimizer", "fused", True),
        ("--optimizer.implementation foreach", "optimizer", "fused", False),
        ("--optimizer.implementation for-loop", "optimizer", "fused", False),
        ("--metrics.no_save_for_all_ranks", "metrics", "rank_0_only", True),
        ("--checkpoint.last_save_model_weights_only", "checkpoint", "model_weights_only", True),
        ("--experimental.custom_model_path pkg", "model", "custom", ("pkg",)),
        ("--experimental.custom_model_path=", "model", "custom", ()),
        ("--training.no_pin_memory", "training", "pin_memory", False),
    ],
)
def test_names_of_flames_dialect_mean_our_options(
    flags: str, section: str, key: str, value: object
) -> None:
    assert dataclasses.asdict(parse_flags(*flags.split()))[section][key] == value


def test_flames_own_defaults_are_accepted() -> None:
    flags = ["--model.name", "fla", "--model.converters=", "--activation_offload.mode", "none"]
    assert parse_flags(*flags, "--fault_tolerance.no_enable") == parse_flags()


@pytest.mark.parametrize(
    ("flags", "recipe"),
    [
        ([], None),
        (["--model.converters="], None),
        (["--model.converters", "float8"], "tensorwise"),
        (["--model.converters", "float8", "--float8.recipe_name", "rowwise"], "rowwise"),
        (["--float8.recipe_name", "rowwise"], "rowwise"),
    ],
)
def test_flames_converter_asks_for_a_recipe(flags, recipe):
    assert parse_flags(*flags).float8.recipe_name == recipe


def test_a_converter_in_a_file_takes_the_recipe_of_a_flag(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[model]\nconverters = ["float8"]\n')
    flags = ["--job.config_file", str(path)]
    assert parse_flags(*flags).float8.recipe_name == "tensorwise"
    flags += ["--float8.recipe_name", "rowwise_with_gw_hp"]
    assert parse_flags(*flags).float8.recipe_name == "rowwise_with_gw_hp"
