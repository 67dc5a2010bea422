"""What options do; each of these tests moves to the tests of its module."""

import os

import pytest
import torch

from flame_accel.config import ConfigError
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate
from flame_accel.parallel.float8 import convert_to_float8
from flame_accel.parallel.topology import resolve_topology
from flame_accel.training import build_optimizer
from tests.helpers.launches import FSDP2
from tests.helpers.optimizers import SINGLE_PROCESS, build_gla
from tests.helpers.runs import SHORT_RUN, read_records


@pytest.mark.covers_option("training.deterministic")
def test_deterministic_asks_torch_and_cublas_for_it(train_here, flags, monkeypatch):
    seen = []
    # set first, so that what the run sets is taken back
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(
        "flame_accel.train.train",
        lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()),
    )
    monkeypatch.setattr("flame_accel.train.export_and_report", lambda *_: None)
    try:
        for deterministic in (False, True):
            train_here(flags(**{"training.deterministic": deterministic}))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert seen == [False, True]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.covers_option("training.seed")
def test_seed_decides_weights_and_order(train_here, flags, tmp_path):
    def first_loss(name: str, seed: int) -> float:
        train_here(
            flags(**SHORT_RUN, **{"job.dump_folder": tmp_path / name, "training.seed": seed})
        )
        return read_records(tmp_path / name)[0]["train/loss"]

    assert first_loss("one", 1) == first_loss("again", 1) != first_loss("two", 2)


@pytest.mark.covers_option(
    "optimizer.eps", "optimizer.beta1", "optimizer.beta2", "optimizer.weight_decay"
)
def test_the_optimizer_gets_its_numbers(configured):
    config = configured(
        **{
            "optimizer.lr": 0.5,
            "optimizer.eps": 0.25,
            "optimizer.beta1": 0.125,
            "optimizer.beta2": 0.75,
            "optimizer.weight_decay": 0.0625,
        }
    )
    optimizer = build_optimizer(SINGLE_PROCESS, build_gla(), config.optimizer)
    decays = set()
    for group in optimizer.param_groups:
        assert (group["lr"], group["eps"], tuple(group["betas"])) == (0.5, 0.25, (0.125, 0.75))
        decays.add(group["weight_decay"])
    assert decays == {0.0625, 0.0}


@pytest.mark.covers_option("training.mixed_precision_reduce")
def test_gradients_are_summed_in_fp32_beside_bf16(configured):
    config = configured(**{"training.mixed_precision_reduce": "float32"})
    launch = FSDP2 | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    launch["ACCELERATE_MIXED_PRECISION"] = "bf16"
    topology = resolve_topology(config.training, launch, devices=None)
    assert (topology.param_dtype, topology.reduce_dtype) == ("bfloat16", "float32")
    with pytest.raises(ConfigError, match="must be one of float32"):
        configured(**{"training.mixed_precision_reduce": "bfloat16"})


@pytest.mark.covers_option("float8.force_recompute_fp8_weight_in_bwd")
def test_no_weight_is_kept_in_8_bits_for_the_backward_pass(configured):
    config = configured(
        **{
            "float8.recipe_name": "tensorwise",
            "float8.emulate": True,
            "float8.force_recompute_fp8_weight_in_bwd": True,
        }
    )
    model = instantiate(tiny_config("gla", hidden_size=128), seed=0)
    convert_to_float8(model, config.float8)
    assert any("Float8" in type(module).__name__ for module in model.modules())
    kept = []
    ids = torch.arange(32)[None]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        model(input_ids=ids, labels=ids)
    assert len(kept) > 10 and all(tensor.element_size() >= 4 for tensor in kept)
