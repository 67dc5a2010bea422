"""What the laws share: inputs, the precision of training, and how closely results must agree."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel


class Precision(NamedTuple):
    """How closely two ways to compute the same thing agree: norm of the difference over norm."""

    step: float
    """Between token by token and one pass."""
    packing: float
    """Between a packed document and the same one alone."""


PRECISION = {"cpu": Precision(step=1e-4, packing=1e-5), "cuda": Precision(step=3e-2, packing=3e-2)}


class LawBroken(Exception):
    """A law that does not hold; the message says in what way."""


def draw_same_token_ids_every_time(model: PreTrainedModel, shape: tuple[int, int]) -> torch.Tensor:
    """The same tokens every time, on the device of the model."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)


@contextmanager
def set_torch_seed_and_autocast_unless_on_cpu(model: PreTrainedModel) -> Iterator[None]:
    """The precision of training on the model's device, and the same random numbers every time."""
    torch.manual_seed(0)
    device = model.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
        yield


def seed_and_compute_uncached_autocast_logits(
    model: PreTrainedModel, ids: torch.Tensor, **options: Any
) -> torch.Tensor:
    """Logits of one pass in fp32, without a cache and with the precision of training."""
    with torch.no_grad(), set_torch_seed_and_autocast_unless_on_cpu(model):
        return model(input_ids=ids, use_cache=False, **options).logits.float()


def compute_uncached_fp32_logits(
    model: PreTrainedModel, ids: torch.Tensor, **options: Any
) -> torch.Tensor:
    """Logits of one pass, without a cache and without autocast."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits.float()


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return ((result - reference).norm() / reference.norm()).item()


def raise_law_broken_unless(holds: bool, broken_message: str) -> None:
    """Raises a `LawBroken` unless it holds."""
    if not holds:
        raise LawBroken(broken_message)
