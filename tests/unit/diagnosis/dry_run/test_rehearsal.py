"""A rehearsed pass holds what a GPU held: peaks of benchmarks/results, within 2%."""

import json
from typing import Any

import pytest
import torch

from flame_accel.config import ActivationCheckpointConfig, ModelConfig
from flame_accel.diagnosis.dry_run.rehearsal import (
    PassOptions,
    prepare_for_rehearsal,
    rehearsal_mode,
    rehearse_pass,
)
from flame_accel.kernels.install import _active
from flame_accel.models import build_model, load_model_config, register_models
from tests.helpers.runs import ROOT

H200_BYTES = 140 * 2**30
TOKENS_OF_A_ROW = 4096
NEWEST = "throughput_h200_mixers.json"
"""Measured with the kernels of today; those of an earlier day kept more."""


def measured_peaks() -> list[Any]:
    rows = json.loads((ROOT / "benchmarks/results" / NEWEST).read_text())
    quick = {("gla", "340M", 65536, "ours"), ("transformer", "1.3B", 32768, "plain")}
    found = []
    for row in rows:
        tokens = int(row["shape"].removeprefix("ragged-"))
        for path in ("ours", "ours_graphs", "plain"):
            if f"{path}_gib" in row:
                case = (row["model"], row["size"], tokens, path)
                marks = () if case in quick else (pytest.mark.slow,)
                found.append(pytest.param(*case, row[f"{path}_gib"], marks=marks))
    return found


@pytest.mark.parametrize(("model", "size", "tokens", "path", "gib"), measured_peaks())
def test_a_peak_is_that_of_a_gpu(model: str, size: str, tokens: int, path: str, gib: float) -> None:
    register_models(())
    config = load_model_config(f"{model}_{size}")
    options = PassOptions(
        seq_len=TOKENS_OF_A_ROW,
        document_tokens=TOKENS_OF_A_ROW,
        bf16=True,
        bf16_stream=path != "plain",
        keeps_gradients=path == "ours_graphs",
        gpu_memory_bytes=H200_BYTES,
    )
    before = list(_active)
    with rehearsal_mode(ModelConfig(fused_kernels=path != "plain")):
        built = build_model(config, vocabulary_size=32_000, bos_token_id=1, eos_token_id=2, seed=0)
        if path == "plain":
            built.train()
        else:
            prepare_for_rehearsal(built, options, ActivationCheckpointConfig())
        memory = rehearse_pass(built, tokens // TOKENS_OF_A_ROW, options)
    # and AdamW's two moments
    assert (memory.peak + 2 * memory.weights) / 2**30 == pytest.approx(gib, rel=0.02)
    assert _active == before, "the kernels of this machine are back"


def test_checkpointed_blocks_keep_their_inputs_only() -> None:
    register_models(())
    config = load_model_config("gla_340M")
    config.num_hidden_layers = 4
    kept = {}
    for mode in ("none", "full"):
        options = PassOptions(
            seq_len=4096,
            document_tokens=None,
            bf16=True,
            bf16_stream=True,
            keeps_gradients=False,
            gpu_memory_bytes=H200_BYTES,
        )
        with rehearsal_mode(ModelConfig()):
            built = build_model(config, vocabulary_size=512, bos_token_id=1, eos_token_id=2, seed=0)
            prepare_for_rehearsal(built, options, ActivationCheckpointConfig(mode=mode))
            kept[mode] = rehearse_pass(built, 4, options).kept
            parameters = sum(p.numel() for p in built.parameters())
    # a bf16 input of each block, those around them, and no more than a few of them
    stream = 4 * 4096 * 1024 * torch.bfloat16.itemsize
    assert kept["full"] < 12 * stream + 2 * parameters < kept["none"] / 3
