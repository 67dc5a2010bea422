"""Laws of tensor parallelism: a split model trains like the whole one, or is refused by name."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flame_accel import kernels
from flame_accel.config import UserError
from flame_accel.models.instantiate import instantiate
from flame_accel.parallel.tensor.plans import SUPPORTED_MODEL_TYPES
from flame_accel.parallel.tensor.regions import (
    check_degree,
    check_loss_parallel,
    find_regions,
    valid_degrees,
)
from tests.helpers.runs import ROOT, launch, launch_environment, read_records
from tests.helpers.tensor_parallel_worker import CASES, WHOLE_LOSS

WAYS = [
    *(f"{name}, loss parallel" for name in CASES),
    *(f"{name}, whole loss" for name in WHOLE_LOSS),
]
TINY_FIELDS = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two peers saw of all cases."""
    folder = tmp_path_factory.mktemp("peers")
    command = [sys.executable, str(ROOT / "tests/helpers/tensor_parallel_worker.py"), str(folder)]
    log = folder / "log.txt"
    with log.open("w") as output:
        environment = launch_environment()
        workers = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        code = workers.wait(timeout=400)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(workers.pid, signal.SIGKILL)
    assert code == 0, log.read_text()[-6000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.covers_option("training.tensor_parallel_degree", "training.disable_loss_parallel")
@pytest.mark.distributed
@pytest.mark.parametrize("way", WAYS)
def test_a_split_model_trains_like_the_whole_one(shown, way):
    case = shown[way]
    assert case["split"] == pytest.approx(case["whole"], rel=1e-5)
    assert case["peers agree"]
    # weights of Adam move by the learning rate in the direction of a gradient of any size
    assert case["weights"] < 1e-4
    assert case["logits"] < 1e-4


@pytest.mark.distributed
@pytest.mark.parametrize("way", WAYS)
def test_names_and_marks_stay_and_copies_keep_equal_bits(shown, way):
    case = shown[way]
    assert case["same names"]
    assert case["unequal copies"] == []
    # most of a model is split
    assert case["elements"] < 0.55


def test_every_model_type_with_a_plan_is_tried():
    assert {name.split(",")[0] for name in CASES} >= set(SUPPORTED_MODEL_TYPES)


@pytest.fixture(scope="module")
def build():
    """`build(model_type, **changes)`: a tiny model."""
    kernels.install("torch")
    import fla  # noqa: F401
    from transformers import AutoConfig

    return lambda model_type, **changes: instantiate(
        AutoConfig.for_model(model_type, **TINY_FIELDS | changes)
    )


def test_a_model_without_a_plan_is_refused_with_those_that_have_one(build):
    with pytest.raises(UserError, match="does not support gsa") as refused:
        find_regions(build("gsa", num_heads=2))
    assert all(model_type in str(refused.value) for model_type in SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize(
    ("model_type", "sizes", "degree", "blamed", "working"),
    [
        ("gla", {"num_heads": 4, "intermediate_size": 64}, 8, "num_heads = 4", [1, 2, 4]),
        ("gla", {"num_heads": 4, "intermediate_size": 50}, 4, "intermediate_size = 50", [1, 2]),
        (
            "transformer",
            {"num_heads": 8, "num_kv_heads": 2, "intermediate_size": 64},
            4,
            "num_kv_heads = 2",
            [1, 2],
        ),
        (
            "gla",
            {
                "num_heads": 4,
                "intermediate_size": 64,
                "attn": {"layers": [0], "num_heads": 4, "num_kv_heads": 1},
            },
            2,
            "num_kv_heads = 1 of model.layers.0.attn",
            [1],
        ),
        (
            "gated_deltanet",
            {"num_heads": 3, "head_dim": 8, "num_v_heads": 6, "intermediate_size": 48},
            2,
            "num_heads = 3",
            [1, 3],
        ),
    ],
)
def test_what_is_not_divisible_is_named_with_the_degrees_that_work(
    build, model_type, sizes, degree, blamed, working
):
    regions = find_regions(build(model_type, **sizes))
    assert valid_degrees(regions) == working
    with pytest.raises(UserError, match=blamed) as refused:
        check_degree(regions, degree)
    assert f"these degrees work: {', '.join(map(str, working))}" in str(refused.value)
    for other in working:
        check_degree(regions, other)


def test_a_layer_with_a_parameter_of_no_plan_is_refused(build):
    """A bias of the output would be added once by each peer."""
    model = build("gla", num_heads=2)
    model.model.layers[0].attn.o_proj.bias = torch.nn.Parameter(torch.zeros(32))
    with pytest.raises(UserError, match="GatedLinearAttention") as refused:
        find_regions(model)
    assert "model.layers.0.attn" in str(refused.value)


def test_a_penalty_of_logits_is_refused_with_loss_parallelism(build):
    with pytest.raises(UserError, match="disable_loss_parallel"):
        check_loss_parallel(build("gla", num_heads=2, use_l2warp=True).config)
    check_loss_parallel(build("gla", num_heads=2).config)


def curve(run_folder: Path) -> list[float]:
    """Losses and gradient norms of all steps, then the validation loss."""
    records = read_records(run_folder)
    values = [record[key] for record in records for key in ("train/loss", "optimizer/grad_norm")]
    return [*values, records[-1]["eval/loss"]]


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """`run(configuration, processes, folder, rows, *flags)`: a run of train.py, a hybrid model."""
    model = tmp_path_factory.mktemp("model") / "kda.json"
    # heads with decays of their own, softmax attention, and a tied vocabulary of odd size
    description = {
        **{"model_type": "kda", "num_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
        **{"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 259},
        "attn": {"layers": [1], "num_heads": 4, "num_kv_heads": 2},
    }
    model.write_text(json.dumps(description))

    def train(config: str, processes: int, folder: Path, rows: int, *flags: str) -> list[float]:
        options = {
            **{"job.dump_folder": folder, "model.config": model, "model.tokenizer_path": "byte"},
            **{"training.dataset": corpus, "evaluation.dataset": corpus, "training.seq_len": 64},
            **{"training.steps": 4, "training.warmup_steps": 2, "training.num_workers": 0},
            **{"metrics.log_freq": 1, "checkpoint.interval": 2, "evaluation.sample_tokens": 0},
            **{"training.varlen": True, "training.context_len": 24, "training.batch_size": rows},
        }
        argv = [*(f"--{name}={value}" for name, value in options.items()), *flags]
        launch(argv, config=config, processes=processes)
        return curve(folder)

    return train


@pytest.mark.distributed
def test_checkpoints_move_between_meshes_and_one_process(run, tmp_path):
    one, mesh = tmp_path / "one", tmp_path / "mesh"
    degree = "--training.tensor_parallel_degree=2"
    whole = run("cpu", 1, one, 8)
    assert run("fsdp2_tp", 4, mesh, 4, degree) == pytest.approx(whole, rel=1e-5)
    for folder in (one, mesh):
        shutil.rmtree(folder / "checkpoint/step-4")
    moved = {
        mesh: run("cpu", 1, mesh, 8),
        # the degree is the launch's
        one: run("tp", 2, one, 8, "--training.disable_loss_parallel"),
    }
    for folder, resumed in moved.items():
        assert "continuing after step 2" in (folder / "log.txt").read_text()
        assert resumed == pytest.approx(whole, rel=1e-5)
