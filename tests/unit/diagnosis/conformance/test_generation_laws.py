"""The laws of generation can fail: each is shown a model that breaks it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fla.models.cache_utils import FLACache
from torch import nn
from transformers import PreTrainedModel

from flame_accel.diagnosis.conformance.generation_laws import (
    GENERATION_LAWS,
    copy_for_eval_with_noise_on_weights,
)
from flame_accel.diagnosis.conformance.measures import LawBroken
from flame_accel.models import build_model
from flame_accel.models.catalogue import VOCABULARY_SIZE, tiny_config


@pytest.fixture(scope="module")
def whole_model() -> PreTrainedModel:
    model = build_model(
        tiny_config("gla"),
        vocabulary_size=VOCABULARY_SIZE,
        bos_token_id=None,
        eos_token_id=None,
        seed=0,
    )
    return copy_for_eval_with_noise_on_weights(model)


@pytest.fixture
def model(whole_model: PreTrainedModel) -> PreTrainedModel:
    return copy_for_eval_with_noise_on_weights(whole_model)


@pytest.mark.parametrize("law", GENERATION_LAWS)
def test_a_whole_model_keeps_the_law(law, whole_model):
    GENERATION_LAWS[law](whole_model)


def change_options_of_layers(
    model: PreTrainedModel, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    def hook(module: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
        return arguments, {**options, **change(options)}

    for layer in model.model.layers:
        layer.attn.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.parametrize(
    ("law", "otherwise"),
    [
        ("generates", "token by token differs"),
        ("caches", "with a cache differs"),
        ("reads in pieces", "read in pieces differs"),
    ],
)
def test_a_cache_that_is_lost_is_noticed(law, otherwise, model):
    change_options_of_layers(model, lambda options: {"past_key_values": None})
    with pytest.raises(LawBroken, match=otherwise):
        GENERATION_LAWS[law](model)


def test_padding_that_is_read_is_noticed(model):
    change_options_of_layers(model, lambda options: {"attention_mask": None})
    with pytest.raises(LawBroken, match="a padded batch generates otherwise"):
        GENERATION_LAWS["leaves padding out"](model)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_read_in_scoring_is_noticed(side, model):
    def lose(options: dict[str, Any]) -> dict[str, Any]:
        mask = options["attention_mask"]
        scores = mask is not None and not options["use_cache"]
        lost = scores and bool(mask[:, -1].all()) == (side == "left")
        return {"attention_mask": torch.ones_like(mask) if lost else mask}

    change_options_of_layers(model, lose)
    if side == "right":
        # what follows the tokens of a causal model does not matter to them
        GENERATION_LAWS["leaves padding out"](model)
    else:
        with pytest.raises(LawBroken, match="padded on the left differs"):
            GENERATION_LAWS["leaves padding out"](model)


def test_beams_with_the_states_of_others_are_noticed(model, monkeypatch):
    monkeypatch.setattr(FLACache, "reorder_cache", lambda cache, beams: None)
    with pytest.raises(LawBroken, match="scores of beams differ"):
        GENERATION_LAWS["searches with beams"](model)


def test_an_error_without_a_cache_is_no_excuse_of_a_model_that_has_one(model):
    def refuse(options: dict[str, Any]) -> dict[str, Any]:
        if options["use_cache"]:
            raise NotImplementedError("no cache")
        return {}

    change_options_of_layers(model, refuse)
    with pytest.raises(NotImplementedError):
        GENERATION_LAWS["caches"](model)
    model.config.use_cache = False
    GENERATION_LAWS["caches"](model)


def test_noise_reaches_every_weight(whole_model):
    noisy = copy_for_eval_with_noise_on_weights(whole_model)
    pairs = zip(noisy.parameters(), whole_model.parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)
