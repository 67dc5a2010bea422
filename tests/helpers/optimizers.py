"""Tiny models, random gradients and runs for tests of optimizers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from flame_accel.models import register_models
from flame_accel.models.build import build_model
from tests.helpers.checkpoints import undo_checkpoint
from tests.helpers.runs import TINY_GLA, read_records

OPTIMIZER_NAMES = ("AdamW", "Adam", "Muon")


HYPERPARAMETERS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}


STEP_IN_BACKWARD = {
    "optimizer.early_step_in_backward": True,
    "training.max_norm": 0,
    "training.skip_nan_inf": False,
}


def fake_accelerator(distributed_type: DistributedType, **changes: Any) -> Any:
    """What optimizers and their checks read of an Accelerator."""
    known = {"device": torch.device("cpu"), "parallelism_config": None, "is_fsdp2": False}
    return SimpleNamespace(
        distributed_type=distributed_type, **known | {"num_processes": 1} | changes
    )


SINGLE_PROCESS = fake_accelerator(DistributedType.NO)


def build_gla(**fields: Any) -> PreTrainedModel:
    """A tiny GLA; `fields` replace fields of its config."""
    register_models()
    config = AutoConfig.for_model(**TINY_GLA | fields)
    return build_model(config, vocabulary_size=258, bos_token_id=1, eos_token_id=2, seed=0)


def step_with_random_gradients(
    model: nn.Module, *optimizers: Any, steps: int = 3, scale: float = 1.0
) -> None:
    """Takes steps with random gradients, the same in every call for models of the same shapes."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def copy_weights_and_state(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """Copies of all weights and optimizer states."""
    states = [value for p in model.parameters() for value in optimizer.state[p].values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *states)]


def weights(model: nn.Module) -> list[Tensor]:
    """The weights themselves, without autograd history."""
    return [parameter.detach() for parameter in model.parameters()]


def read_curve(run_folder: Path) -> list[float]:
    """Loss and gradient norm of every step, in turn."""
    return [
        record[key]
        for record in read_records(run_folder)
        for key in ("train/loss", "optimizer/grad_norm")
    ]


def resume_from_step_4(run_folder: Path, train_again: Callable[[], None]) -> None:
    """Starts a finished run again from its checkpoint of step 4, whose last one is removed."""
    last = max((run_folder / "checkpoint").iterdir())
    assert last.name != "step-4"
    undo_checkpoint(last)
    (run_folder / "hf/model.safetensors").unlink()
    train_again()
    assert "continuing after step 4" in (run_folder / "log.txt").read_text()
