"""A model's constructor: seeded, checked, with errors that a user can read."""

import pytest
import torch
from transformers import AutoConfig

from flame_accel.config.errors import UserError
from flame_accel.models.registration import register_models
from tests.helpers.model_configs import (
    TINY_GLA,
    build_small,
    custom_source,
    write,
)


def test_a_config_without_a_causal_language_model_is_refused(tmp_path):
    register_models([str(write(tmp_path / "ownhalf.py", custom_source("Ownhalf", register="")))])
    with pytest.raises(UserError, match=r"no causal language model .* OwnhalfConfig"):
        build_small(AutoConfig.for_model("ownhalf"))


def test_a_seed_decides_the_weights_and_leaves_the_generator_alone():
    config = AutoConfig.for_model(**TINY_GLA)
    torch.manual_seed(3)
    first = build_small(config).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)
    again, other = (
        build_small(config).state_dict(),
        build_small(config, seed=8).state_dict(),
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_architecture_initializes_its_own_weights():
    config = AutoConfig.for_model(**{**TINY_GLA, "hidden_size": 256}, initializer_range=0.006)
    model = build_small(config, vocabulary_size=500)
    assert model.lm_head.weight.std().item() == pytest.approx(0.006, rel=0.02)


@pytest.mark.parametrize(
    "changes",
    [{"num_heads": 3}, {"expand_k": 0.501}, {"num_heads": 0}, {"hidden_size": "32"}],
    ids=["heads", "expand", "zero", "type"],
)
def test_sizes_that_do_not_fit_are_the_users_to_correct(changes):
    with pytest.raises(UserError, match=r"model_type 'gla': the values .* do not fit") as e:
        build_small(AutoConfig.for_model(**{**TINY_GLA, **changes}))
    assert e.value.exit_code == 2


def test_a_package_that_a_layer_needs_is_named(monkeypatch):
    monkeypatch.setattr("fla.layers.attn.flash_attn_func", None)
    config = AutoConfig.for_model("transformer", hidden_size=32, num_hidden_layers=1, num_heads=2)
    with pytest.raises(UserError, match=r"package .* is missing: .*flash-attn"):
        build_small(config)


@pytest.mark.parametrize(
    ("name", "extra", "tensor"),
    [
        ("Poisonone", "self.scale = nn.Parameter(torch.empty(4))", "scale"),
        ("Poisontwo", "self.register_buffer('steps', torch.empty(4, dtype=torch.long))", "steps"),
    ],
)
def test_a_tensor_without_a_value_is_refused_by_name(tmp_path, name, extra, tensor):
    register_models([str(write(tmp_path / f"{name}.py", custom_source(name, extra=extra)))])
    with pytest.raises(UserError, match=f"leaves without a value: {tensor}$|: {tensor}\n"):
        build_small(AutoConfig.for_model(name.lower()))


def test_building_restores_the_deterministic_mode():
    for enabled in (False, True):
        torch.use_deterministic_algorithms(enabled, warn_only=enabled)
        try:
            build_small(AutoConfig.for_model(**TINY_GLA))
            assert torch.are_deterministic_algorithms_enabled() is enabled
            assert torch.is_deterministic_algorithms_warn_only_enabled() is enabled
        finally:
            torch.use_deterministic_algorithms(False)
