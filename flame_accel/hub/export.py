"""The export of a trained model: the folder `hf/`, written at once.

Weights, config and tokenizer are written in `checkpoint/hf_model`, the card in `model_card`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from flame_accel.checkpoint.hf_model import gather_full_weights_to_main, save_hf_model
from flame_accel.files import replace_folder
from flame_accel.hub.model_card import write_model_card
from flame_accel.parallel import unwrap


def export_model(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype,
    training_table: Mapping[str, str],
) -> None:
    """Exports a trained model with its model card. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        model: The model as Accelerate prepared it.
        tokenizer: Saved next to the weights.
        folder: Folder of the export; it is replaced atomically if it exists.
        dtype: Dtype in which floating-point weights are stored.
        training_table: Rows of the model card's training table.
    """
    weights = gather_full_weights_to_main(accelerator, model)
    if accelerator.is_main_process:
        inner = unwrap(accelerator, model)
        with replace_folder(folder) as temporary:
            save_hf_model(inner, weights, tokenizer, temporary, dtype)
            write_model_card(temporary, inner.config, training_table)
    accelerator.wait_for_everyone()
