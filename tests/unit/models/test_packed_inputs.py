"""transformers' own models take the boundaries of packed documents as fla's do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from flame_accel.config.errors import UserError
from flame_accel.models.build import build_model
from flame_accel.models.catalogue import VOCABULARY_SIZE, tiny_config
from flame_accel.models.packed_inputs import (
    accept_cu_seqlens_if_transformers_model,
    is_transformers_model,
    positions_in_documents,
)
from flame_accel.models.transformers_catalogue import tiny_transformers_config

IDS = torch.arange(7)[None]
BOUNDARIES = torch.tensor([0, 3, 4, 7], dtype=torch.int32)


def inputs_of(model: nn.Module, **inputs: Any) -> dict[str, Any]:
    """What the forward of a model gets."""
    seen: dict[str, Any] = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    with model.register_forward_pre_hook(keep, with_kwargs=True), torch.no_grad():
        model(**inputs)
    return seen


def build(model_type: str) -> nn.Module:
    fla = model_type == "gla"
    config = tiny_config(model_type) if fla else tiny_transformers_config(model_type)
    special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    return build_model(config, vocabulary_size=VOCABULARY_SIZE, seed=0, **special)


def test_positions_start_again_at_each_document():
    assert positions_in_documents(BOUNDARIES, 7).tolist() == [[0, 1, 2, 0, 0, 1, 2]]


def test_boundaries_become_position_ids():
    seen = inputs_of(build("llama"), input_ids=IDS, cu_seqlens=BOUNDARIES)
    positions = seen.pop("position_ids")
    assert positions.tolist() == [[0, 1, 2, 0, 0, 1, 2]]
    assert seen.keys() == {"input_ids", "use_cache"} and seen["use_cache"] is False


def test_layers_with_a_state_get_the_boundaries():
    seen = inputs_of(build("qwen3_next"), input_ids=IDS, cu_seqlens=BOUNDARIES)
    assert seen["cu_seq_lens_q"] is BOUNDARIES and "position_ids" in seen


@pytest.mark.parametrize("model_type", ["llama", "qwen3_next"])
def test_rows_without_boundaries_are_left_alone(model_type):
    assert inputs_of(build(model_type), input_ids=IDS).keys() == {"input_ids"}


def test_flas_models_get_what_they_are_given():
    assert inputs_of(build("gla"), input_ids=IDS, cu_seqlens=BOUNDARIES).keys() == {
        "input_ids",
        "cu_seqlens",
    }


def test_a_model_without_positions_says_so():
    with pytest.raises(UserError, match="FalconMambaForCausalLM takes no position_ids"):
        inputs_of(build("falcon_mamba"), input_ids=IDS, cu_seqlens=BOUNDARIES)


def test_a_model_of_ones_own_that_takes_boundaries_is_left_alone():
    class Own(LlamaForCausalLM):
        def forward(self, input_ids: Tensor, cu_seqlens: Tensor | None = None) -> None:
            self.seen = cu_seqlens

    model = Own(tiny_transformers_config("llama"))
    accept_cu_seqlens_if_transformers_model(model)
    model(IDS, cu_seqlens=BOUNDARIES)
    assert model.seen is BOUNDARIES
    assert is_transformers_model(Own) and not is_transformers_model(nn.Linear)
