"""Model FLOPs by formula are those that torch counts of a real pass with our PyTorch kernels.

Meant are those of forward and backward without recomputation. torch's counter sees what kernels do
within chunks in addition, and what an autograd function of ours computes again: at the shapes of
the shipped configs both are small.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from flame_accel import kernels
from flame_accel.models import register_models, train_flops_per_token
from flame_accel.models.flops import FORWARD_AND_BACKWARD
from flame_accel.models.instantiate import instantiate_on_default_device
from tests.helpers.runs import ROOT

COUNTED_TOKENS = 128


def count_with_pytorch_kernels(model_type: str, layers: int) -> tuple[float, float]:
    """Operations of a token by formula, and as torch counts those of our PyTorch kernels."""
    config = AutoConfig.from_pretrained(ROOT / f"configs/{model_type}_340M.json")
    config.num_hidden_layers, config.vocab_size = layers, 128
    with torch.device("meta"):
        model = instantiate_on_default_device(config).train()
    # whatever values: initial ones would take seconds
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    ids = torch.zeros(1, COUNTED_TOKENS, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    by_formula = train_flops_per_token(model, COUNTED_TOKENS)
    assert by_formula is not None
    return by_formula, counter.get_total_flops() / COUNTED_TOKENS


@pytest.mark.parametrize(
    "model_type",
    [
        *("transformer", "gla", "delta_net", "gated_deltanet", "kda", "mamba2", "rwkv7"),
        *("retnet", "hgrn2", "gsa", "gated_deltaproduct"),
    ],
)
def test_a_340m_model_takes_what_torch_counts_of_our_kernels_within_2_percent(model_type):
    register_models(())
    kernels.install("torch")
    of_two, of_three = (count_with_pytorch_kernels(model_type, layers) for layers in (2, 3))
    formula, counted = (
        two + 22 * (three - two) + 6 * 1024 * (32_000 - 128)
        for two, three in zip(of_two, of_three, strict=True)
    )
    if model_type == "transformer":
        # the plain kernel computes the masked scores too
        keys_too_many = COUNTED_TOKENS - (COUNTED_TOKENS + 1) / 2
        counted -= FORWARD_AND_BACKWARD * 24 * 4 * 1024 * keys_too_many
    assert formula == pytest.approx(counted, rel=0.02)
