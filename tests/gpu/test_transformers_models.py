"""transformers' own models on a CUDA device: laws under bf16, with Triton and flash kernels."""

import pytest
import torch

from flame_accel import kernels
from flame_accel.diagnosis.conformance.laws import TRIAL_LAWS, run_law_checks
from flame_accel.kernels.tuning import disable_tuning_then_forget_choices_made
from flame_accel.models.transformers_catalogue import tiny_transformers_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MODELS = (
    "bamba",
    "deepseek_v3",
    "gemma3_text",
    "gpt2",
    "kimi_linear",
    "llama",
    "mixtral",
    "olmo_hybrid",
    "qwen3",
    "qwen3_next",
)
"""One of each kind of layer: windows, values narrower than keys, dropout, states, experts."""


@pytest.fixture(autouse=True, scope="module")
def triton_kernels():
    kernels.install()


@pytest.mark.parametrize("model_type", MODELS)
def test_a_model_of_transformers_breaks_no_law_on_a_gpu(model_type):
    with disable_tuning_then_forget_choices_made():
        findings = list(run_law_checks(tiny_transformers_config(model_type), "cuda", TRIAL_LAWS))
    assert {finding.law: finding.reason for finding in findings if not finding.holds} == {}
