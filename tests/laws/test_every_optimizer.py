"""A run with each optimizer: it resumes with the same bits, and equals one under other engines."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.optimizers import (
    OPTIMIZER_NAMES,
    STEP_IN_BACKWARD,
    read_curve,
    resume_from_step_4,
)
from tests.helpers.runs import TINY_GLA, launch


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(train_here, flags, tmp_path, name):
    argv = flags(**{"optimizer.name": name, "optimizer.lr": 0.01, "evaluation.sample_tokens": 0})
    train_here(argv)
    records, model = read_curve(tmp_path / "run"), load_file(tmp_path / "run/hf/model.safetensors")
    assert records[-2] < records[0] - 0.1
    resume_from_step_4(tmp_path / "run", lambda: train_here(argv))
    again = load_file(tmp_path / "run/hf/model.safetensors")
    assert read_curve(tmp_path / "run") == records
    assert all(torch.equal(again[key], model[key]) for key in model)


@pytest.fixture(scope="module")
def ragged_flags(corpus, tmp_path_factory):
    """`ragged_flags(folder, dp_size, **changes)`: flags of a run that reads the same rows.

    Its model has parameters that FSDP2 ignores, A_log and dt_bias.
    """
    model = tmp_path_factory.mktemp("model") / "gated_deltanet.json"
    model.write_text(json.dumps(TINY_GLA | {"model_type": "gated_deltanet", "head_dim": 16}))

    def build_flags(folder: Path, dp_size: int, **changes) -> list[str]:
        options = {
            "job.dump_folder": folder,
            "model.config": model,
            "model.tokenizer_path": "byte",
            "training.dataset": corpus,
            "training.seq_len": 64,
            "training.context_len": 24,
            "training.varlen": True,
            "training.batch_size": 8 // dp_size,
            "training.steps": 6,
            "training.warmup_steps": 2,
            "training.num_workers": 0,
            "metrics.log_freq": 1,
            "checkpoint.interval": 4,
            "evaluation.sample_tokens": 0,
            **changes,
        }
        return [f"--{name}={value}" for name, value in options.items()]

    return build_flags


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("config", "processes", "tensor_degree"), [("ddp", 2, 1), ("fsdp2", 2, 1), ("fsdp2_tp", 4, 2)]
)
def test_muon_on_several_processes_equals_muon_on_one(
    train_here, ragged_flags, tmp_path, config, processes, tensor_degree
):
    options = {"optimizer.name": "Muon", "optimizer.lr": 0.003}
    train_here(ragged_flags(tmp_path / "one", 1, **options))
    degree = {"training.tensor_parallel_degree": tensor_degree}
    argv = ragged_flags(tmp_path / "more", processes // tensor_degree, **options, **degree)
    launch(argv, config=config, processes=processes)
    expected = pytest.approx(read_curve(tmp_path / "one"), rel=1e-5)
    assert read_curve(tmp_path / "more") == expected
    # the momentum of matrices is assembled from the shards of the ranks
    resume_from_step_4(
        tmp_path / "more", lambda: train_here(ragged_flags(tmp_path / "more", 1, **options))
    )
    assert read_curve(tmp_path / "more") == expected


@pytest.mark.distributed
def test_stepping_in_backward_on_shards_equals_one_process(train_here, ragged_flags, tmp_path):
    late = STEP_IN_BACKWARD | {"optimizer.early_step_in_backward": False}
    train_here(ragged_flags(tmp_path / "one", 1, **late))
    launch(ragged_flags(tmp_path / "two", 2, **STEP_IN_BACKWARD), config="fsdp2", processes=2)
    expected = pytest.approx(read_curve(tmp_path / "one"), rel=1e-5)
    assert read_curve(tmp_path / "two") == expected
    resume_from_step_4(
        tmp_path / "two", lambda: train_here(ragged_flags(tmp_path / "two", 1, **late))
    )
    assert read_curve(tmp_path / "two") == expected
