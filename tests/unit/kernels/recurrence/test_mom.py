"""MoM's layer sees no future, keeps rows and documents apart, and loses no token."""

import pytest
import torch
from fla.layers.mom import MomAttention
from fla.models.cache_utils import Cache
from torch import nn

from flame_accel.diagnosis.conformance.generation_laws import GENERATION_LAWS
from flame_accel.kernels.recurrence.mom import transform
from tests.helpers.gradients import assert_close
from tests.helpers.model_configs import tiny_generator
from tests.helpers.recurrence import (
    assert_cached_tokens_equal_one_pass,
    assert_every_parameter_gets_a_gradient,
    assert_packed_documents_are_apart,
)

pytestmark = pytest.mark.usefixtures("torch_kernels")


def build_layer(**options: bool) -> nn.Module:
    torch.manual_seed(0)
    return MomAttention(
        hidden_size=32, head_dim=16, num_heads=2, num_memories=4, layer_idx=0, **options
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared_mem", [True, False])
def test_layer_is_causal_and_keeps_rows_apart(training: bool, shared_mem: bool):
    layer, x = build_layer(shared_mem=shared_mem).train(training), torch.randn(2, 150, 32)
    changed = x.clone()
    changed[0, 100:] += 1.0
    o, o_changed = layer(x)[0], layer(changed)[0]
    assert layer.training == training
    assert torch.allclose(o_changed[0, :100], o[0, :100], atol=1e-5)
    assert torch.allclose(o_changed[1], o[1], atol=1e-5)
    assert not torch.allclose(o_changed[0, 100:], o[0, 100:], atol=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_layer_keeps_packed_documents_apart(training: bool):
    assert_packed_documents_are_apart(build_layer().train(training))


def test_cached_tokens_equal_one_pass():
    assert_cached_tokens_equal_one_pass(build_layer().eval(), tokens=80, first=60)


def test_every_parameter_gets_a_gradient():
    assert_every_parameter_gets_a_gradient(build_layer().train())


def test_every_memory_gets_its_tokens_in_order():
    torch.manual_seed(0)
    batch, tokens, memories, chosen = 3, 200, 5, 2
    selected = torch.rand(batch, tokens, memories).topk(chosen).indices
    selected = torch.where(selected == 4, 0, selected)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[1, :30] = False
    time = torch.arange(tokens).view(1, -1, 1).expand(batch, -1, -1)
    x = torch.cat((time, torch.arange(batch).view(-1, 1, 1).expand(-1, tokens, -1)), -1)
    x_by_memory, _, order, longest, mask_of_slots, mask_by_memory = transform(
        x, selected, memories, selected, mask
    )
    for memory in range(memories):
        for row in range(batch):
            expected = [
                [t, row]
                for t in range(tokens)
                for choice in selected[row, t].tolist()
                if choice == memory and mask[row, t]
            ]
            assert x_by_memory[memory, row][mask_by_memory[memory, row]].tolist() == expected
    assert mask_of_slots.sum(-1).max() == longest
    assert torch.equal(order.sort().values, torch.arange(batch * tokens * chosen))


@pytest.mark.parametrize("changes", [{}, {"shared_mem": False}, {"single_kv_proj": True}])
def test_states_of_beams_are_those_of_their_texts(changes):
    GENERATION_LAWS["searches with beams"](tiny_generator("mom", **changes))


def test_a_cache_counts_tokens_and_is_continued_with_any_number_of_them():
    layer, cache = build_layer().eval(), Cache()
    x = torch.randn(2, 11, 32)
    with torch.no_grad():
        expected = layer(x)
        parts = [
            layer(part, past_key_values=cache, use_cache=True) for part in x.split((5, 1, 5), 1)
        ]
    assert cache.get_seq_length(0) == 11
    assert cache[0]["recurrent_state"][0].shape[:2] == (2, 4)
    assert_close([torch.cat([part[0] for part in parts], 1)], [expected[0]], 1e-5)
    logits = torch.cat([part[3].unflatten(0, (2, -1)) for part in parts], 1)
    assert_close([logits.flatten(0, 1)], [expected[3]], 1e-5)
