"""A replayed graph computes the bits of the same pass without a graph, whatever its documents."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from flame_accel import kernels
from flame_accel.models.catalogue import VOCABULARY_SIZE, tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.training import PassGraphs
from flame_accel.training.loss import compute_unscaled_nats_over_global_targets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOKENS, TARGETS = 8192, 8000
DOCUMENTS = [[0, 100, 4000, 4096, TOKENS], [0, TOKENS // 2, TOKENS], [0, 1, 2, 4097, TOKENS]]


def draw_batch(seed: int, boundaries: list[int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY_SIZE, (1, TOKENS), generator=generator).cuda()
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32, device="cuda")
    return {"input_ids": ids, "labels": ids, "cu_seqlens": cu_seqlens, "num_targets": TARGETS}


@pytest.mark.parametrize("model_type", ["gla", "gated_deltanet"])
def test_replays_have_the_bits_of_passes_without_graphs(monkeypatch, model_type):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    kernels.install()
    kernels.install_fused_kernels()
    accelerator = Accelerator(mixed_precision="bf16")
    model = (
        instantiate_on_default_device(tiny_config(model_type, hidden_size=1024), seed=0)
        .cuda()
        .train()
    )

    def compute_loss(batch: Any, targets: Any) -> Tensor:
        return compute_unscaled_nats_over_global_targets(accelerator, model, batch, targets)

    graphs = PassGraphs(accelerator, model, compute_loss, longest_document=4096, scale=1)

    def take_results(loss: Tensor) -> dict[str, Tensor]:
        results = {"loss": loss.clone()}
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            results[name] = parameter.grad.clone()
            parameter.grad.zero_()
        return results

    take_results(graphs.add_gradients_and_get_loss(draw_batch(0, DOCUMENTS[0]), TARGETS))
    [inputs] = graphs._inputs.values()
    for seed, boundaries in enumerate(DOCUMENTS):
        replayed = take_results(
            graphs.add_gradients_and_get_loss(draw_batch(seed, boundaries), TARGETS)
        )
        without = take_results(graphs._compute_loss_and_add_gradients(inputs))
        different = [name for name, x in without.items() if not torch.equal(x, replayed[name])]
        assert different == []
    assert len(graphs._graphs) == 1
