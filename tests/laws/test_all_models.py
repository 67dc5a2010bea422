"""Every model that fla registers keeps the conformance laws, apart from the known issues.

The laws themselves can fail: each is shown a model that breaks it.
"""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from flame_accel.diagnosis.conformance.known_issues import KNOWN_ISSUES, known_issues
from flame_accel.diagnosis.conformance.laws import (
    LAWS,
    LawBroken,
    check_generates,
    check_keeps_documents_apart,
    check_laws,
    check_reloads,
    check_trains,
    find_mixer_kernels,
)
from flame_accel.models import build_model
from flame_accel.models.catalogue import VOCABULARY_SIZE, registered_config_classes, tiny_config

SOFTMAX = {"layers": [1], "num_heads": 2, "num_kv_heads": 1}
HYBRIDS = {
    "gla with attention": ("gla", {"attn": SOFTMAX}),
    "gated_deltanet with a window": ("gated_deltanet", {"attn": {**SOFTMAX, "window_size": 16}}),
    "gla with a convolution": ("gla", {"use_short_conv": True}),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def broken_laws(model_type: str, **changes: Any) -> dict[str, str]:
    findings = check_laws(tiny_config(model_type, **changes))
    return {finding.law: finding.reason for finding in findings if not finding.holds}


# strict: a model that starts to work has to leave the list of holes
@pytest.mark.parametrize("model_type", sorted(registered_config_classes()))
def test_a_model_breaks_no_law_but_those_that_are_known(model_type):
    broken = broken_laws(model_type)
    assert broken.keys() == known_issues(model_type, "cpu").keys(), broken


@pytest.mark.parametrize(("model_type", "changes"), HYBRIDS.values(), ids=HYBRIDS)
def test_a_variant_breaks_no_law(model_type, changes):
    assert broken_laws(model_type, **changes) == {}


def test_moba_that_leaves_blocks_out_generates_with_all_of_them_by_design():
    assert broken_laws("moba", moba_topk=2).keys() == {"generates"}


def test_the_catalogue_has_every_registered_model():
    registered = MODEL_FOR_CAUSAL_LM_MAPPING._extra_content
    ours = {value for value in registered if value.__module__.startswith("fla.")}
    assert set(registered_config_classes().values()) == ours


def test_the_holes_name_models_and_laws():
    for hole in KNOWN_ISSUES:
        assert set(hole.models.split()) <= registered_config_classes().keys()
        assert hole.law in LAWS
        assert set(hole.devices.split()) <= {"cpu", "cuda"}


def test_the_kernels_of_a_model_are_named():
    assert find_mixer_kernels(tiny_config("gla")) == ["recurrence.gla"]


def tiny_gla() -> PreTrainedModel:
    return build_model(
        tiny_config("gla"),
        vocabulary_size=VOCABULARY_SIZE,
        bos_token_id=None,
        eos_token_id=None,
        seed=0,
    )


def test_training_notices_a_parameter_without_a_gradient():
    model = tiny_gla()
    model.model.layers[0].idle = nn.Linear(2, 2)
    with pytest.raises(LawBroken, match=r"no gradient reaches model\.layers\.0\.idle"):
        check_trains(model)


def test_training_notices_a_loss_that_does_not_fall():
    model = tiny_gla()
    for parameter in model.parameters():
        parameter.register_hook(torch.neg)
    with pytest.raises(LawBroken, match="does not fall"):
        check_trains(model)


def test_training_notices_a_gradient_that_is_not_finite():
    model = tiny_gla()
    model.lm_head.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(LawBroken, match=r"not finite: lm_head\.weight"):
        check_trains(model)


def test_reloading_notices_a_value_that_is_not_saved():
    model = tiny_gla()
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(LawBroken, match="other logits"):
        check_reloads(model)


def test_generation_notices_a_cache_that_is_lost():
    model = tiny_gla()

    def forget(module: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
        return arguments, {**options, "past_key_values": None}

    for layer in model.model.layers:
        layer.attn.register_forward_pre_hook(forget, with_kwargs=True)
    with pytest.raises(LawBroken, match="token by token differs"):
        check_generates(model)


def test_the_leak_test_notices_boundaries_that_are_ignored():
    model = tiny_gla()
    model.register_forward_pre_hook(drop_boundaries, with_kwargs=True)
    with pytest.raises(LawBroken, match="one document changes another's logits"):
        check_keeps_documents_apart(model)


def drop_boundaries(module: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
    return arguments, {name: value for name, value in options.items() if name != "cu_seqlens"}
