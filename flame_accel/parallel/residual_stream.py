"""The dtype of the residual stream where a model computes under bf16 autocast.

Autocast computes matrix products in bf16 and leaves the sum that runs from block to block in the
dtype of the embedding's output. With fp32 weights that is fp32: norms, residual sums and all else
between two products then move twice the bytes. Casting the output of the embedding is enough, since
blocks add to the stream in its own dtype. FSDP2 opens no autocast: its parameters have a dtype of
their own (`topology`), and the stream has the same.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from flame_accel.config import TrainingConfig
from flame_accel.parallel.describe import compute_dtype


def casts_residual_stream_to_bf16(accelerator: Accelerator, training: TrainingConfig) -> bool:
    """Whether embeddings give bf16 in this run: under bf16 autocast, unless switched off."""
    autocasts = compute_dtype(accelerator) == "bfloat16" and not accelerator.is_fsdp2
    return autocasts and training.residual_dtype == "bfloat16"


def describe_residual_stream_if_cast(
    accelerator: Accelerator, training: TrainingConfig
) -> str | None:
    """A line for the log where the stream's dtype is not that of the weights; None elsewhere."""
    if not casts_residual_stream_to_bf16(accelerator, training):
        return None
    return "residual stream: bfloat16; weights: float32"


def cast_embeddings_under_autocast(model: PreTrainedModel) -> None:
    """Makes all embeddings of a model give bf16 under bf16 autocast, in place.

    Weights, their gradients and passes without autocast keep their dtype. A model whose config asks
    for a residual stream in fp32 (`residual_in_fp32`) keeps it.

    Args:
        model: Vocabulary-parallel embeddings are those already: they sum their parts in fp32.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_cast_output_to_bf16_under_autocast)


def _cast_output_to_bf16_under_autocast(
    module: nn.Module, inputs: object, output: Tensor
) -> Tensor:
    device = output.device.type
    autocasts = torch.is_autocast_enabled(device)
    to_bf16 = autocasts and torch.get_autocast_dtype(device) is torch.bfloat16
    return output.bfloat16() if to_bf16 else output
