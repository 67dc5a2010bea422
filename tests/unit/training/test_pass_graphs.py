"""Passes as graphs: they compute what passes without graphs do, whatever documents they get.

Without a GPU a graph is played by a function that is called again at each replay, on the same
tensors.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from flame_accel.config import UserError, parse
from flame_accel.models.catalogue import VOCABULARY_SIZE, tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.training import pass_graphs
from flame_accel.training.loss import compute_unscaled_nats_over_global_targets
from flame_accel.training.pass_graphs import CapturedPass, PassGraphs, build_pass_graphs

TARGETS = 50


def play_graph(compute: Callable[[], Tensor], pool: Any) -> CapturedPass:
    result = torch.zeros(())
    return CapturedPass(lambda: result.copy_(compute()) and None, result, pool or object())


def draw_batch(seed: int, boundaries: list[int] | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY_SIZE, (1, 96), generator=generator)
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids.clone(), "num_targets": TARGETS}
    if boundaries is not None:
        batch["cu_seqlens"] = torch.tensor(boundaries, dtype=torch.int32)
    return batch


PACKED = [[0, 96], [0, 10, 96], [0, 40, 41, 96], [0, 96], list(range(0, 97, 4))]
ROWS = [None] * 4


@pytest.mark.parametrize("model_type", ["gla", "transformer", "gated_deltanet", "kda"])
@pytest.mark.parametrize("documents", [PACKED, ROWS], ids=["packed", "rows"])
def test_gradients_of_replays_are_those_of_passes_without_graphs(model_type, documents):
    accelerator = Accelerator(cpu=True)
    model, same = (instantiate_on_default_device(tiny_config(model_type), seed=0) for _ in range(2))
    captured: list[Any] = []

    def capture(compute: Callable[[], Tensor], pool: Any) -> CapturedPass:
        captured.append(pool)
        return play_graph(compute, pool)

    def compute_loss(batch: Any, targets: Any) -> Tensor:
        return compute_unscaled_nats_over_global_targets(accelerator, model, batch, targets)

    graphs = PassGraphs(
        accelerator, model, compute_loss, longest_document=96, scale=2, capture=capture
    )
    for seed, boundaries in enumerate(documents):
        batch = draw_batch(seed, boundaries)
        found = graphs.add_gradients_and_get_loss(batch, TARGETS)
        expected = compute_unscaled_nats_over_global_targets(accelerator, same, batch, TARGETS)
        (2 * expected).backward()
        torch.testing.assert_close(found, expected.detach())
        for (name, a), b in zip(model.named_parameters(), same.parameters(), strict=True):
            if b.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-4, atol=1e-5)
    # twenty-four documents came once, in a pass without a graph
    assert captured == [None]


def test_passes_that_cannot_be_captured_run_without_graphs_and_say_so(caplog):
    accelerator, model = (
        Accelerator(cpu=True),
        instantiate_on_default_device(tiny_config("gla"), seed=0),
    )
    tried: list[Any] = []

    def refuse(compute: Callable[[], Tensor], pool: Any) -> CapturedPass:
        tried.append(pool)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def compute_loss(batch: Any, targets: Any) -> Tensor:
        return compute_unscaled_nats_over_global_targets(accelerator, model, batch, targets)

    graphs = PassGraphs(
        accelerator, model, compute_loss, longest_document=96, scale=1, capture=refuse
    )
    losses = [graphs.add_gradients_and_get_loss(draw_batch(0, [0, 96]), TARGETS) for _ in range(3)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    assert tried == [None]
    [record] = caplog.records
    assert "operation not permitted" in record.message and "cuda_graphs" in record.message


class OneGpu:
    """What is asked of an Accelerator of one process on a GPU."""

    device = torch.device("cuda")
    num_processes = 1
    is_fsdp2 = False
    distributed_type = "NO"


def build(monkeypatch: pytest.MonkeyPatch, model_type: str = "gla", **changes: Any) -> Any:
    """The graphs of a run on a GPU with other fields of the Accelerator, or options."""
    monkeypatch.setattr(pass_graphs, "triton_has_device", lambda: True)
    accelerator: Any = OneGpu()
    options = {"model.config": "gla_1M", "model.tokenizer_path": "byte"}
    options["training.dataset"] = "python-stdlib"
    for name, value in changes.items():
        if hasattr(OneGpu, name):
            setattr(accelerator, name, value)
        else:
            options[name.replace("__", ".")] = value
    config = parse([f"--{name}={value}" for name, value in options.items()])
    optimizer: Any = SimpleNamespace(optimizer=None)
    return build_pass_graphs(
        accelerator, instantiate_on_default_device(tiny_config(model_type)), optimizer, config
    )


@pytest.mark.covers_option("training.cuda_graphs")
def test_cuda_graphs_of_training_are_the_default_for_measured_models_on_one_gpu(monkeypatch):
    assert isinstance(build(monkeypatch), PassGraphs)
    assert build(monkeypatch, training__cuda_graphs="never") is None
    assert build(monkeypatch, "mom") is None
    assert isinstance(build(monkeypatch, "mom", training__cuda_graphs="always"), PassGraphs)
    assert build(monkeypatch, training__compile=True) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": torch.device("cpu")}, "CUDA device"),
        ({"num_processes": 2}, "one GPU"),
        ({"is_fsdp2": True}, "one GPU"),
        ({"activation_checkpoint__mode": "full"}, "activation checkpointing"),
    ],
)
def test_a_run_that_cannot_have_graphs_says_why_if_they_were_asked_for(
    monkeypatch, changes, reason
):
    assert build(monkeypatch, **changes) is None
    with pytest.raises(UserError, match=reason):
        build(monkeypatch, training__cuda_graphs="always", **changes)
