"""The small version of a model, and Triton kernels compared with PyTorch kernels."""

from typing import Any

import pytest

from flame_accel import kernels
from flame_accel.diagnosis import small_model_trial
from flame_accel.models import load_model_config
from flame_accel.models.catalogue import tiny_config
from tests.helpers.runs import ROOT


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*_340M.json")), ids=lambda path: path.stem
)
def test_the_small_version_keeps_widths_and_kinds_of_layers(path):
    config = load_model_config(str(path))
    before = config.to_dict()
    small = small_model_trial.shrink_layers_and_vocabulary_or_tiny_to_fit(config, "cuda")
    assert config.to_dict() == before
    assert (small.num_hidden_layers, small.hidden_size) == (2, config.hidden_size)
    assert small.to_dict().get("head_dim") == before.get("head_dim")
    if before.get("attn"):
        assert small.attn == {**config.attn, "layers": [1]}
    assert type(small) is type(config)


def test_a_small_version_that_is_still_large_becomes_the_tiny_model():
    config = load_model_config(str(ROOT / "configs/gla_1.3B.json"))
    assert (
        small_model_trial.shrink_layers_and_vocabulary_or_tiny_to_fit(config, "cuda").hidden_size
        == 2048
    )
    assert (
        small_model_trial.shrink_layers_and_vocabulary_or_tiny_to_fit(config, "cpu").hidden_size
        == tiny_config("gla").hidden_size
    )


def test_kernels_that_agree_and_kernels_that_do_not(monkeypatch):
    """PyTorch stands in for Triton; the second time it is wrong by a factor."""
    kinds = []
    monkeypatch.setattr(kernels, "install", kinds.append)
    config = tiny_config("gla")
    agreeing = list(small_model_trial.compare_triton_with_torch(config, "cpu"))
    assert [c.quantity for c in agreeing] == [
        f"{what} in {dtype}"
        for dtype in ("float32", "bfloat16")
        for what in ("logits", "gradients")
    ]
    assert all(c.holds and c.error == 0 for c in agreeing)
    assert kinds == ["torch", "triton", "triton"] * 2

    compute = small_model_trial._compute_logits_and_flat_gradients

    def wrong(kind: str, *arguments: Any) -> small_model_trial.LogitsAndGradients:
        factor = {"torch": 1.0, "triton": 1.2}[kind]
        return small_model_trial.LogitsAndGradients(
            *(value * factor for value in compute(kind, *arguments))
        )

    monkeypatch.setattr(small_model_trial, "_compute_logits_and_flat_gradients", wrong)
    assert not any(c.holds for c in small_model_trial.compare_triton_with_torch(config, "cpu"))
    monkeypatch.setattr(
        small_model_trial, "_compute_logits_and_flat_gradients", lambda *arguments: 1 / 0
    )
    broken = list(small_model_trial.compare_triton_with_torch(config, "cpu"))
    assert [c.reason for c in broken] == ["ZeroDivisionError: division by zero"] * 2
    assert not any(c.holds for c in broken)
