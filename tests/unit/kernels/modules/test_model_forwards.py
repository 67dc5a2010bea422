"""Whole models leave padding out of what they compute."""

import pytest
import torch

from flame_accel.config.errors import UserError
from flame_accel.diagnosis.conformance.generation_laws import GENERATION_LAWS
from tests.helpers.model_configs import tiny_generator

MASK = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize("law", ["leaves padding out", "searches with beams"])
def test_cat_cuts_its_chunks_from_the_first_token_of_a_row(law):
    GENERATION_LAWS[law](tiny_generator("cat"))


def test_cat_gives_hidden_states_and_gradients_of_padded_rows():
    model = tiny_generator("cat")
    ids = torch.randint(256, MASK.shape)
    output = model(input_ids=ids, attention_mask=MASK, output_hidden_states=True)
    alone = model(input_ids=ids[:1, 3:], output_hidden_states=True)
    for padded, single in zip(output.hidden_states, alone.hidden_states, strict=True):
        assert padded.shape[:2] == MASK.shape
        torch.testing.assert_close(padded[:1, 3:], single)
    output.logits[0, 3:].sum().backward()
    assert all(p.grad is not None for p in model.model.layers.parameters())
    assert isinstance(model.model(ids, MASK, return_dict=False), tuple)


def test_cat_takes_one_chunk_size_of_its_schedule_for_a_batch():
    model = tiny_generator("cat", train_chunk_size_schedule="power_of_2").train()
    model(input_ids=torch.randint(256, MASK.shape), attention_mask=MASK)
    assert int(model.model._train_chunk_size_step) == 1


def test_cat_refuses_a_mask_of_another_length():
    model = tiny_generator("cat")
    with pytest.raises(UserError, match="mask of 5 tokens for 1 tokens"):
        model(input_ids=torch.zeros(4, 1, dtype=torch.long), attention_mask=MASK)


def test_yoco_scores_padding_on_both_sides_and_fills_no_cache_with_the_right_one():
    model = tiny_generator("yoco")
    GENERATION_LAWS["leaves padding out"](model)
    ids = torch.randint(256, MASK.shape)
    with pytest.raises(UserError, match="YOCO fills no cache"):
        model(input_ids=ids, attention_mask=MASK)
    model(input_ids=ids[:3], attention_mask=MASK[:3])
