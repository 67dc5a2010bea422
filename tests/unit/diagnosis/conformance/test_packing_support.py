"""Packing is refused, by name, for exactly those models of fla that mix documents."""

from typing import Any

import pytest
import torch
from fla.models import GLAConfig, GLAForCausalLM
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from flame_accel.config import UserError
from flame_accel.diagnosis.conformance.known_issues import KNOWN_ISSUES
from flame_accel.diagnosis.conformance.packing_support import (
    DOCUMENTS_APART,
    check_keeps_documents_apart_unless_fla_model,
    check_no_known_packing_issue,
)
from flame_accel.models.catalogue import fla_config_classes, tiny_config

# that these models do mix documents is a law of test_models_all
MIXING = {
    kernels: {
        name
        for issue in KNOWN_ISSUES
        if issue.law == DOCUMENTS_APART and device in issue.devices.split()
        for name in issue.models.split()
    }
    for kernels, device in {"torch": "cpu", "triton": "cuda"}.items()
}


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_packing_is_refused_by_name(kernels):
    assert MIXING[kernels]
    for model_type in MIXING[kernels]:
        with pytest.raises(UserError, match=f"^training.varlen: {model_type} does not keep packed"):
            check_no_known_packing_issue(tiny_config(model_type), active_kernels=kernels)


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_packing_is_accepted_for_all_others(kernels):
    for model_type in fla_config_classes().keys() - MIXING[kernels]:
        check_no_known_packing_issue(tiny_config(model_type), active_kernels=kernels)


def test_a_model_that_is_not_flas_is_tried_out():
    sizes = {"hidden_size": 32, "num_attention_heads": 2}
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=r"^training.varlen: falcon does not keep packed documents"):
        check_keeps_documents_apart_unless_fla_model(AutoConfig.for_model("falcon", **sizes), "cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_of_ones_own_that_keeps_documents_apart_is_accepted():
    class OwnConfig(GLAConfig):
        model_type = "own_gla"

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)

    class OwnForCausalLM(GLAForCausalLM):
        config_class = OwnConfig

    AutoConfig.register("own_gla", OwnConfig)
    AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM)
    check_keeps_documents_apart_unless_fla_model(OwnConfig(hidden_size=64, num_heads=2), "cpu")


def test_a_config_that_names_its_layers_otherwise_is_tried_out_too():
    class OtherConfig(PreTrainedConfig):
        model_type = "other"

        def __init__(self, depth: int = 1, vocab_size: int = 64, **options: Any) -> None:
            super().__init__(**options)
            self.depth, self.vocab_size = depth, vocab_size

    class OtherForCausalLM(PreTrainedModel):
        config_class = OtherConfig

        def __init__(self, config: OtherConfig) -> None:
            super().__init__(config)
            self.embed = torch.nn.Embedding(config.vocab_size, 8)
            self.head = torch.nn.Linear(8, config.vocab_size)
            self.post_init()

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embed

        def forward(self, input_ids: torch.Tensor, **options: Any) -> CausalLMOutput:
            hidden = self.embed(input_ids)
            return CausalLMOutput(logits=self.head(hidden.cumsum(1) if self.leaks else hidden))

    AutoConfig.register("other", OtherConfig)
    AutoModelForCausalLM.register(OtherConfig, OtherForCausalLM)
    OtherForCausalLM.leaks = False
    check_keeps_documents_apart_unless_fla_model(OtherConfig(), "cpu")
    OtherForCausalLM.leaks = True
    with pytest.raises(UserError, match="one document changes another's logits"):
        check_keeps_documents_apart_unless_fla_model(OtherConfig(), "cpu")
