"""Parameters by part: each once, under the part that holds it."""

import pytest
import torch
from transformers import AutoConfig

from flame_accel.diagnosis.dry_run.parameters import count_parameters_by_part
from flame_accel.models import register_models
from flame_accel.models.instantiate import instantiate_on_default_device


def count(model_type: str, **fields: object) -> tuple[dict[str, int], int]:
    register_models(())
    small = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2}
    config = AutoConfig.for_model(model_type, **small, **fields)
    with torch.device("meta"):
        model = instantiate_on_default_device(config)
    return count_parameters_by_part(model), sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gla", {"num_heads": 4}),
        ("mamba2", {"head_dim": 16, "num_heads": 8}),
        ("rwkv7", {"head_dim": 16, "num_heads": 4}),
        ("llama", {"num_attention_heads": 4, "intermediate_size": 128}),
    ],
)
def test_the_parts_add_up(model_type: str, fields: dict[str, int]) -> None:
    parts, total = count(model_type, **fields)
    assert sum(parts.values()) == total
    assert parts["embeddings"] == parts["head"] == 100 * 64
    assert parts["mixers"] > 0 < parts["norms"]
    assert (parts["feed-forward"] > 0) == (model_type != "mamba2")
    assert parts["others"] == 0


def test_a_tied_head_counts_once() -> None:
    parts, total = count("gla", num_heads=4, tie_word_embeddings=True)
    assert parts["head"] == 0
    assert sum(parts.values()) == total
