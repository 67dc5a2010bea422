"""Weights and optimizer state on disk: names and shapes, batches, any optimizer."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch import nn

from flame_accel.checkpoint import tensor_storage
from flame_accel.checkpoint.optimizer_shards import (
    copy_optimizer_shard_of_rank,
    write_optimizer_shard,
)
from flame_accel.checkpoint.tensor_storage import (
    load_optimizer_state,
    load_weights,
    named_optimizer_state,
)
from flame_accel.config import UserError
from tests.helpers.checkpoints import equal_tensors


@pytest.mark.covers_option("model.config")
def test_another_model_does_not_resume(train_here, flags, tmp_path, tiny_model):
    train_here(flags())
    weights = tmp_path / "weights"
    shutil.copytree(tmp_path / "run/hf", weights)
    # weights without a config are told by their names and shapes
    (weights / "config.json").unlink()
    other = tmp_path / "other.json"
    for changes, difference in (
        ({"intermediate_size": 96}, "gate_proj.weight, [256, 32] there and [96, 32] here"),
        ({"num_hidden_layers": 3}, "tensors missing"),
    ):
        other.write_text(json.dumps(json.loads(tiny_model.read_text()) | changes))
        start = {"checkpoint.initial_load_path": weights, "job.dump_folder": tmp_path / "new"}
        with pytest.raises(UserError, match="another model or optimizer") as raised:
            train_here(flags(**start, **{"model.config": other}))
        assert difference in str(raised.value)


class Network(nn.Module):
    """Two weights, of which one is tied, and a persistent buffer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(width, 3, bias=False)
        self.tied = nn.Linear(width, 3, bias=False)
        self.tied.weight = self.first.weight
        self.norm = nn.Parameter(torch.ones(width))
        self.register_buffer("scale", torch.full((2,), 3.0))


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_buffers_are_overwritten_from_any_dtype(accelerator, tmp_path, dtype):
    model = Network()
    stored = {
        "first.weight": torch.randn(3, 4).to(dtype),
        "norm": torch.randn(4).to(dtype),
        "scale": torch.tensor([5.0, 6.0]).to(dtype),
    }
    load_weights(accelerator, model, save(tmp_path / "model", stored))
    assert torch.equal(model.first.weight, stored["first.weight"].float())
    assert model.tied.weight is model.first.weight
    assert torch.equal(model.norm, stored["norm"].float())
    assert torch.equal(model.scale, stored["scale"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": None}, "1 tensors missing, 0 unknown, 0 of another shape, such as norm"),
        ({"other": torch.ones(1)}, "0 tensors missing, 1 unknown, 0 of another shape, such as ot"),
        ({"norm": torch.ones(5)}, r"1 of another shape, such as norm, \[5\] there and \[4\] here"),
    ],
)
def test_another_model_is_refused_before_anything_is_overwritten(
    accelerator, tmp_path, change, message
):
    model = Network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stored = {"first.weight": torch.zeros(3, 4), "norm": torch.zeros(4), "scale": torch.zeros(2)}
    stored = {n: t for n, t in {**stored, **change}.items() if t is not None}
    with pytest.raises(UserError, match=message):
        load_weights(accelerator, model, save(tmp_path / "model", stored))
    assert equal_tensors(before, dict(model.state_dict()))


@pytest.mark.parametrize("fused", [True, False])
def test_the_state_of_an_optimizer_survives_saving_and_loading(accelerator, tmp_path, fused):
    def build() -> tuple[Any, AcceleratedOptimizer]:
        torch.manual_seed(0)
        model = Network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        return accelerator.prepare(model, optimizer)

    def step(model: Any, optimizer: AcceleratedOptimizer) -> None:
        model.first(model.norm * torch.arange(4.0)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    trained, optimizer = build()
    step(trained, optimizer)
    shard = copy_optimizer_shard_of_rank(accelerator, trained, optimizer)
    assert shard is not None
    write_optimizer_shard(shard, tmp_path / "optimizer")
    model, loaded = build()
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_optimizer_state(accelerator, model, loaded, tmp_path)
    assert equal_tensors(untouched, dict(model.state_dict()))
    assert [group["lr"] for group in loaded.optimizer.param_groups] == [0.1]
    expected = named_optimizer_state(trained, optimizer)
    assert {"first.weight.exp_avg", "norm.exp_avg_sq", "norm.step"} <= expected.keys()
    assert equal_tensors(expected, named_optimizer_state(model, loaded))
    model.load_state_dict(trained.state_dict())
    for pair in ((trained, optimizer), (model, loaded)):
        step(*pair)
    assert equal_tensors(dict(trained.state_dict()), dict(model.state_dict()))


def test_full_tensors_are_read_in_batches_of_a_limited_size(tmp_path, monkeypatch):
    stored = {name: torch.full((size,), float(size)) for name, size in SIZES.items()}
    folder = save(tmp_path / "model", stored)
    monkeypatch.setattr(tensor_storage, "BATCH_BYTES", 40)
    shapes = {name: tensor.to("meta") for name, tensor in stored.items()}
    batches: list[dict[str, torch.Tensor]] = []
    needed = set(SIZES) - {"d"}
    tensor_storage._load_full_tensors_in_batches(
        shapes, folder, batches.append, names_to_read=needed
    )
    assert [list(batch) for batch in batches] == [["a", "b"], ["c"], ["e"]]
    merged = {name: tensor for batch in batches for name, tensor in batch.items()}
    assert equal_tensors(merged, {name: stored[name] for name in needed})


SIZES = {"a": 4, "b": 6, "c": 100, "d": 3, "e": 1}
"""Numbers of fp32 elements: the first two together are as large as a batch, the third is larger."""
