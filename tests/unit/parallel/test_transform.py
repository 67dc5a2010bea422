"""Transforming a model: each option does its part, and no name of a parameter changes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchao.float8.float8_linear import Float8Linear
from transformers import PreTrainedModel

from flame_accel.config import ActivationCheckpointConfig, Float8Config, TrainingConfig
from flame_accel.kernels.fused import shared_input
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.parallel import apply_float8_tp_cast_compile_and_checkpointing

FLOAT8 = Float8Config(recipe_name="tensorwise", emulate=True)


def transform(
    training: TrainingConfig, mode: Any = "none", float8: Float8Config | None = None
) -> PreTrainedModel:
    accelerator: Any = SimpleNamespace(
        parallelism_config=None,
        is_fsdp2=False,
        device=torch.device("cpu"),
        mixed_precision="bf16",
        distributed_type="NO",
    )
    model = instantiate_on_default_device(tiny_config("gla", hidden_size=128))
    names = list(model.state_dict())
    checkpointing = ActivationCheckpointConfig(mode=mode)
    apply_float8_tp_cast_compile_and_checkpointing(
        accelerator, model, training, checkpointing, float8 or Float8Config()
    )
    assert list(model.state_dict()) == names
    return model


def has_replaced_forwards(model: PreTrainedModel) -> list[bool]:
    return ["forward" in vars(block) for block in model.get_decoder().layers]


def test_without_options_nothing_changes():
    model = transform(TrainingConfig())
    assert has_replaced_forwards(model) == [False, False]
    assert not any(isinstance(module, Float8Linear) for module in model.modules())


@pytest.mark.parametrize("options", [{"mode": "full"}, {"training": TrainingConfig(compile=True)}])
def test_blocks_are_checkpointed_or_compiled_where_asked_for(options):
    model = transform(**{"training": TrainingConfig(), **options})
    assert has_replaced_forwards(model) == [True, True]


def test_layers_are_converted_before_blocks_are_compiled():
    model = transform(TrainingConfig(compile=True), "full", FLOAT8)
    assert has_replaced_forwards(model) == [True, True]
    assert any(isinstance(module, Float8Linear) for module in model.modules())


@pytest.mark.parametrize(
    ("mode", "compile", "shares"),
    [("none", False, True), ("full", False, False), ("none", True, False)],
)
def test_maps_are_told_whether_blocks_are_compiled_or_checkpointed(
    monkeypatch, mode, compile, shares
):
    monkeypatch.setattr(shared_input, "fused_kernels_are_installed", lambda: True)
    model: Any = transform(TrainingConfig(compile=compile), mode)
    mixer = model.get_decoder().layers[0].attn
    assert ("forward" in vars(mixer.q_proj)) is shares
