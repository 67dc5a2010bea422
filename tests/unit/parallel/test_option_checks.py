"""Options that the devices or the engine of a run do not support are refused without a model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from flame_accel.config import Float8Config, TrainingConfig, UserError
from flame_accel.models import register_models
from flame_accel.models.catalogue import tiny_config
from flame_accel.parallel import check_parallel_options


def check(
    training: TrainingConfig | None = None,
    float8: Float8Config | None = None,
    *,
    tp: int = 1,
    device: str = "cpu",
    model_config: Any = None,
) -> None:
    accelerator: Any = SimpleNamespace(
        device=torch.device(device),
        distributed_type="NO",
        is_fsdp2=False,
        num_processes=tp,
        parallelism_config=SimpleNamespace(tp_size=tp),
    )
    check_parallel_options(
        accelerator,
        training or TrainingConfig(),
        float8 or Float8Config(),
        model_config or tiny_config("gla"),
    )


def test_the_defaults_are_supported_everywhere():
    check()


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (
            {"training": TrainingConfig(fsdp_reshard_after_forward="always")},
            "training.fsdp_reshard_after_forward",
        ),
        ({"training": TrainingConfig(compile=True), "device": "cuda"}, "training.compile"),
        ({"float8": Float8Config(recipe_name="tensorwise")}, "float8.recipe_name"),
        (
            {"float8": Float8Config(recipe_name="tensorwise", emulate=True), "tp": 2},
            "float8.recipe_name",
        ),
        ({"tp": 3}, "training.tensor_parallel_degree"),
        ({"tp": 2, "model_config": tiny_config("gsa")}, "training.tensor_parallel_degree"),
    ],
)
def test_an_option_that_is_not_supported_is_refused_by_name(arguments, where):
    with pytest.raises(UserError) as raised:
        check(**arguments)
    assert raised.value.where == where
    assert raised.value.remedy


def test_a_large_model_is_checked_without_memory_for_its_weights():
    register_models()
    config = AutoConfig.for_model("gla", hidden_size=16384, num_hidden_layers=64, num_heads=32)
    check(tp=2, model_config=config)
