"""transformers' attention over packed documents is that of each alone, and costs as much."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from flame_accel.config import ActivationCheckpointConfig
from flame_accel.kernels.attention import transformers_attention
from flame_accel.kernels.attention.transformers_attention import (
    PACKED_ATTENTION,
    boundaries_or_sdpa_mask,
    packed_attention,
    packed_causal_mask,
    set_packed_boundaries,
)
from flame_accel.models.build import build_model
from flame_accel.models.catalogue import VOCABULARY_SIZE
from flame_accel.models.transformers_catalogue import tiny_transformers_config
from flame_accel.parallel.activations import checkpoint_activations

BOUNDARIES = torch.tensor([0, 3, 33, 103, 104, 130], dtype=torch.int32)
TOKENS = 130
LAYER: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
IDS = torch.randint(VOCABULARY_SIZE, (1, TOKENS), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def not_packed_afterwards():
    yield
    set_packed_boundaries(None)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def boundaries(local_size: int | None = None) -> Tensor:
    set_packed_boundaries(BOUNDARIES)
    mask = boundaries_or_sdpa_mask(local_size=local_size)
    assert mask is not None
    return mask


@pytest.mark.parametrize("value_width", [16, 8])
@pytest.mark.parametrize("local_size", [None, 1, 5, 200])
@pytest.mark.parametrize("scaling", [None, 0.5])
def test_packed_attention_is_attention_with_a_mask(local_size, value_width, scaling):
    q = randn(1, 4, TOKENS, 16, seed=0)
    k, v = randn(1, 2, TOKENS, 16, seed=1), randn(1, 2, TOKENS, value_width, seed=2)
    mask = packed_causal_mask(BOUNDARIES, TOKENS, -1 if local_size is None else local_size - 1)
    expected, _ = sdpa_attention_forward(LAYER, q, k, v, mask, scaling=scaling)
    packed, _ = packed_attention(LAYER, q, k, v, boundaries(local_size), scaling=scaling)
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)


def test_dropout_and_biases_run_with_a_mask():
    q, k, v = (randn(1, 2, TOKENS, 16, seed=seed) for seed in range(3))
    layer: Any = SimpleNamespace(is_causal=True)
    mask = packed_causal_mask(BOUNDARIES, TOKENS, 4)
    for options in ({"dropout": 0.5}, {"position_bias": randn(1, 2, TOKENS, TOKENS, seed=3)}):
        outputs = []
        for attention, given in (
            (sdpa_attention_forward, mask),
            (packed_attention, boundaries(5)),
        ):
            torch.manual_seed(0)
            outputs.append(attention(layer, q, k, v, given, **options)[0])
        assert torch.equal(*outputs)


def test_rows_that_are_not_packed_run_on_sdpa():
    q, k, v = (randn(2, 2, 9, 16, seed=seed) for seed in range(3))
    layer: Any = SimpleNamespace(is_causal=True)
    expected, _ = sdpa_attention_forward(layer, q, k, v, None)
    assert torch.equal(packed_attention(layer, q, k, v, None)[0], expected)
    padding = torch.ones(2, 9, dtype=torch.bool)
    padding[:, :3] = False
    mask = boundaries_or_sdpa_mask(
        batch_size=2, q_length=9, kv_length=9, attention_mask=padding, allow_is_causal_skip=True
    )
    assert mask is not None and mask.shape == (2, 1, 9, 9)


def build(model_type: str, **changes: Any) -> PreTrainedModel:
    config = tiny_transformers_config(model_type, **changes)
    return build_model(
        config, vocabulary_size=VOCABULARY_SIZE, bos_token_id=None, eos_token_id=None, seed=0
    )


def loss_and_gradients(model: PreTrainedModel) -> list[Tensor]:
    torch.manual_seed(1)
    loss = model(input_ids=IDS, labels=IDS, cu_seqlens=BOUNDARIES).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [("llama", {}), ("llama", {"attention_dropout": 0.2}), ("gemma3_text", {}), ("gpt2", {})],
)
def test_recomputed_layers_keep_documents_apart_too(model_type, changes):
    kept, recomputed = build(model_type, **changes), build(model_type, **changes)
    checkpoint_activations(recomputed, ActivationCheckpointConfig(mode="full"))
    expected = loss_and_gradients(kept.train())
    for value, wanted in zip(loss_and_gradients(recomputed.train()), expected, strict=True):
        assert torch.equal(value, wanted)


def test_no_mask_of_the_whole_row_is_formed(monkeypatch):
    monkeypatch.setattr(
        transformers_attention, "sdpa_attention_forward", lambda *a, **o: pytest.fail("a mask")
    )
    model = build("qwen3")
    loss_and_gradients(model)
    assert model.config._attn_implementation == PACKED_ATTENTION
    assert "attn" not in "".join(model.config.to_dict())


def test_an_error_in_a_packed_row_leaves_the_next_row_unpacked():
    model = build("llama").eval()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        with pytest.raises(IndexError):
            model(input_ids=IDS + VOCABULARY_SIZE, cu_seqlens=BOUNDARIES)
        assert torch.equal(model(input_ids=IDS).logits, expected)
