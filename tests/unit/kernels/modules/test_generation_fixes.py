"""Attention layers generate what one pass computes, with windows too."""

import pytest
import torch

from flame_accel.diagnosis.conformance.generation_laws import GENERATION_LAWS
from tests.helpers.model_configs import tiny_generator


@pytest.mark.parametrize("model_type", ["mla", "moba", "forgetting_transformer"])
def test_windows_are_the_same_in_the_cache_and_in_one_pass(model_type):
    model = tiny_generator(model_type, window_size=8)
    for layer in model.model.layers:
        if model_type == "forgetting_transformer":
            # it forgets hardly anything, so that a window would show
            torch.nn.init.constant_(layer.attn.f_proj.bias, 8.0)
    GENERATION_LAWS["caches"](model)
    GENERATION_LAWS["leaves padding out"](model)


def test_path_attention_scores_padded_batches_without_a_cache():
    GENERATION_LAWS["leaves padding out"](tiny_generator("path_attn"))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("transformer", {}),
        ("mla", {}),
        ("mla", {"window_size": 8}),
        ("moba", {}),
        ("nsa", {}),
        ("wall_transformer", {}),
        ("moba", {"window_size": 8}),
        ("wall_transformer", {"window_size": 8}),
        ("transformer", {"window_size": 8}),
        ("bitnet", {"window_size": 8}),
        ("parallax", {"window_size": 8}),
        ("rodimus", {"ska_attn": {"num_heads": 2, "window_size": 8}}),
    ],
)
def test_tokens_continue_a_cache_with_a_mask_that_hides_none(model_type, changes):
    model, ids = tiny_generator(model_type, **changes), torch.randint(256, (2, 20))
    with torch.no_grad():
        whole = model(input_ids=ids).logits[:, 12:]
        cache = model(input_ids=ids[:, :12], use_cache=True).past_key_values
        # as many tokens as the window
        continued = model(
            input_ids=ids[:, 12:], attention_mask=torch.ones_like(ids), past_key_values=cache
        ).logits
    torch.testing.assert_close(continued, whole, atol=1e-4, rtol=1e-4)
