"""The laws themselves can fail: each is shown a model that breaks it."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from flame_accel.diagnosis.conformance.laws import (
    check_keeps_documents_apart,
    check_reload_keeps_logits,
    check_training_lowers_loss,
    find_cpu_mixer_kernel_modules,
)
from flame_accel.diagnosis.conformance.measures import LawBroken
from flame_accel.models import build_model
from flame_accel.models.catalogue import VOCABULARY_SIZE, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_kernels_of_a_model_are_named():
    assert find_cpu_mixer_kernel_modules(tiny_config("gla")) == ["recurrence.gla"]


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
        check_training_lowers_loss(model)


def test_training_notices_a_loss_that_does_not_fall():
    model = tiny_gla()
    for parameter in model.parameters():
        parameter.register_hook(torch.neg)
    with pytest.raises(LawBroken, match="does not fall"):
        check_training_lowers_loss(model)


def test_training_notices_a_gradient_that_is_not_finite():
    model = tiny_gla()
    model.lm_head.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(LawBroken, match=r"not finite: lm_head\.weight"):
        check_training_lowers_loss(model)


def test_reloading_notices_a_value_that_is_not_saved():
    model = tiny_gla()
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(LawBroken, match="other logits"):
        check_reload_keeps_logits(model)


def test_the_leak_test_notices_boundaries_that_are_ignored():
    model = tiny_gla()
    model.register_forward_pre_hook(drop_boundaries, with_kwargs=True)
    with pytest.raises(LawBroken, match="one document changes another's logits"):
        check_keeps_documents_apart(model)


def drop_boundaries(module: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
    return arguments, {name: value for name, value in options.items() if name != "cu_seqlens"}
