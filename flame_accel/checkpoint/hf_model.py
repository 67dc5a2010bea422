"""Weights in the Hugging Face format: what `from_pretrained` reads, written from any engine.

Used for the weights of every checkpoint and for the final export. The rest of a checkpoint is
written in `contents`, the rest of an export in `hub/export`.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flame_accel.checkpoint.deepspeed_zero import gather_zero_weights_to_main
from flame_accel.parallel import is_deepspeed, unwrap


def gather_full_weights_to_main(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor]:
    """All weights on the main process's CPU, in the training dtype; empty on other ranks.

    Every rank must call it.
    """
    if is_deepspeed(accelerator):
        return gather_zero_weights_to_main(accelerator, model)
    inner = unwrap(accelerator, model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(inner, options=options)
    return weights if accelerator.is_main_process else {}


def save_hf_model(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Writes config, weights and tokenizer for `from_pretrained(folder)`. Called by one process.

    Args:
        model: Provides the configuration and the names of tied weights; its weights are not read.
        weights: All weights by name, on the CPU.
        tokenizer: Saved next to the weights.
        folder: Created if it does not exist.
        dtype: Dtype in which floating-point weights are stored; `config.dtype` names it.
    """
    cast = {
        name: weight.to(dtype) if weight.is_floating_point() else weight
        for name, weight in weights.items()
    }
    model.save_pretrained(folder, state_dict=cast)
    # save_pretrained wrote the dtype of the model in memory; from_pretrained loads in the config's
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
