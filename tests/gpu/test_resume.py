"""A run on a GPU that crashes and is started again ends with the bits of one left alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.runs import model_digests, read_losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# heads of 64 or 128 channels, as in configs/*_340M.json
CONFIGS: dict[str, dict[str, Any]] = {
    "gla": {"num_heads": 4, "expand_k": 0.5, "expand_v": 1.0, "hidden_size": 1024},
    "gated_deltanet": {"num_heads": 6, "head_dim": 128, "hidden_size": 1024},
    "mamba2": {"num_heads": 32, "head_dim": 64, "state_size": 128, "hidden_size": 1024},
    "rwkv7": {"head_dim": 64, "hidden_size": 1024},
    "transformer": {"num_heads": 8, "hidden_size": 512},
}


@pytest.mark.parametrize("cuda_graphs", ["always", "never"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_crash_and_a_second_start_change_no_bit(
    tmp_path: Path, flags, train_here, monkeypatch, model_type, cuda_graphs
):
    from flame_accel.observe import MetricLogger

    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config = tmp_path / "model.json"
    fields = {"model_type": model_type, "num_hidden_layers": 2, "vocab_size": 258}
    config.write_text(json.dumps(fields | CONFIGS[model_type]))
    options = {
        "model.config": config,
        "model.tune_kernels": "never",
        "training.dataset": "python-stdlib",
        # more tokens than PyTorch's embedding adds up in a fixed order
        "training.batch_size": 4,
        "training.seq_len": 2048,
        "training.varlen": True,
        "training.gradient_accumulation_steps": 2,
        "training.cuda_graphs": cuda_graphs,
        # softmax attention's gradients have no fixed order otherwise
        "training.deterministic": model_type == "transformer",
        "evaluation.sample_tokens": 0,
    }
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_here(flags(**options, **{"job.dump_folder": whole}))
    write = MetricLogger.log_and_write_record

    def crash_at_6(self: MetricLogger, record: dict[str, float], **options: Any) -> None:
        if record["step"] == 6:
            raise KeyboardInterrupt
        write(self, record, **options)

    with monkeypatch.context() as crash, pytest.raises(KeyboardInterrupt):
        crash.setattr(MetricLogger, "log_and_write_record", crash_at_6)
        train_here(flags(**options, **{"job.dump_folder": broken}))
    train_here(flags(**options, **{"job.dump_folder": broken}))
    assert read_losses(broken) == read_losses(whole)
    assert model_digests(broken / "hf") == model_digests(whole / "hf")
