"""Tensor parallelism by plans of our own."""

from accelerate import Accelerator
from transformers import PreTrainedModel


def split_model(accelerator: Accelerator, model: PreTrainedModel, *, loss_parallel: bool) -> None:
    """Splits the matrices of a model over the peers of tensor parallelism, in place."""
