"""Modes of layers that drop boundaries or states are not entered."""

import pytest
import torch

from flame_accel.diagnosis.conformance.generation_laws import GENERATION_LAWS
from flame_accel.diagnosis.conformance.laws import run_law_checks
from flame_accel.models.catalogue import tiny_config
from tests.helpers.model_configs import tiny_generator


@pytest.mark.parametrize("model_type", ["gla", "hgrn2"])
def test_fused_chunk_keeps_documents_and_padding_apart(model_type):
    laws = ("leaves padding out", "keeps documents apart")
    for result in run_law_checks(tiny_config(model_type, attn_mode="fused_chunk"), laws=laws):
        assert result.holds, result


def test_retention_in_parallel_fills_its_cache():
    GENERATION_LAWS["caches"](tiny_generator("retnet", attn_mode="parallel"))


@pytest.mark.parametrize(
    ("model_type", "mode"),
    [("gla", "fused_chunk"), ("hgrn2", "fused_chunk"), ("retnet", "parallel")],
)
def test_the_mode_that_is_entered_computes_the_same(model_type, mode):
    models = [tiny_generator(model_type, attn_mode=m) for m in (mode, "chunk")]
    ids = torch.randint(256, (1, 70))
    with torch.no_grad():
        given, entered = (model(input_ids=ids).logits for model in models)
    assert torch.equal(given, entered)
