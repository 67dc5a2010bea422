"""The host does not wait for the GPU in a step that does not log."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# heads of 64 or 128 channels, as in configs/*_340M.json
CONFIGS: dict[str, dict[str, Any]] = {
    "gla": {"num_heads": 4, "expand_k": 0.5, "expand_v": 1.0, "hidden_size": 1024},
    "transformer": {"num_heads": 8, "hidden_size": 512},
    "gated_deltanet": {"num_heads": 6, "head_dim": 128, "hidden_size": 1024},
    "kda": {"num_heads": 8, "head_dim": 128, "hidden_size": 1024},
    "delta_net": {"num_heads": 8, "hidden_size": 1024},
    "rwkv7": {"head_dim": 64, "hidden_size": 1024},
    "mamba2": {"num_heads": 32, "head_dim": 64, "state_size": 128, "hidden_size": 1024},
}
PARTS = ("train_step", "batch_to_device_with_host_boundaries")


def fail_on_waits(function: Callable[..., Any], *, from_call: int) -> Callable[..., Any]:
    """The function, which raises where the host waits; the first calls compile and allocate."""
    calls = 0

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < from_call:
            return function(*args, **kwargs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return run


@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize("varlen", [True, False])
def test_no_step_waits(tmp_path: Path, flags, train_here, monkeypatch, model_type, varlen):
    from flame_accel import observe, train

    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config = tmp_path / "model.json"
    fields = {"model_type": model_type, "num_hidden_layers": 2, "vocab_size": 258}
    config.write_text(json.dumps(fields | CONFIGS[model_type]))
    for name in PARTS:
        monkeypatch.setattr(train, name, fail_on_waits(getattr(train, name), from_call=5))
    add_step = fail_on_waits(observe.Meter.add_step, from_call=5)
    monkeypatch.setattr(observe.Meter, "add_step", add_step)
    keep_step = fail_on_waits(observe.SkippedUpdates.add_step, from_call=5)
    monkeypatch.setattr(observe.SkippedUpdates, "add_step", keep_step)
    train_here(
        flags(
            **{
                "model.config": config,
                "model.tune_kernels": "never",
                "training.dataset": "python-stdlib",
                "training.batch_size": 2,
                "training.seq_len": 2048,
                "training.varlen": varlen,
                "training.gradient_accumulation_steps": 2,
                "training.steps": 8,
                "training.skip_spike_sigma": 6,
                # capturing waits, once for each number of documents
                "training.cuda_graphs": "never",
                "metrics.log_freq": 100,
                "evaluation.sample_tokens": 0,
            }
        )
    )
