"""Weights that are stored under other names than the model has, as transformers itself reads them.

Checkpoints of transformers' own models may be older than its classes: experts one by one instead of
in one tensor, projections that were merged, names without the prefix of the base model.
`from_pretrained` converts them. What is stored under the model's names is read in `tensor_storage`,
shard by shard.
"""

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypedDict

import torch
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import AutoModelForCausalLM, PreTrainedModel

from flame_accel.checkpoint import deepspeed_zero as zero
from flame_accel.checkpoint.failed_loads import read_or_raise_on_all_ranks
from flame_accel.config import UserError
from flame_accel.models.packed_inputs import is_transformers_model
from flame_accel.parallel import is_deepspeed


class LoadingInfo(TypedDict):
    """transformers' report about the tensors that it loaded."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, torch.Size, torch.Size]]


def needs_conversion_by_transformers(model: PreTrainedModel, stored_names: Collection[str]) -> bool:
    """Whether weights of a model of transformers are stored under other names than it has now.

    Args:
        model: Sharded or not.
        stored_names: Names of the stored tensors.
    """
    names = {name for name, _ in model.named_parameters()}
    stored = set(stored_names)
    same = names <= stored and stored <= model.state_dict().keys()
    return is_transformers_model(type(model)) and not same


def load_converted_weights(accelerator: Accelerator, model: PreTrainedModel, folder: Path) -> None:
    """Overwrites a prepared model's weights with those that `from_pretrained` reads.

    Every rank must call it. The main process holds the whole model on the CPU for it; with
    DeepSpeed every rank does.

    Args:
        accelerator: The run's accelerator.
        model: The unwrapped model.
        folder: Folder with safetensors.

    Raises:
        UserError: The folder contains another model.
    """
    deepspeed = is_deepspeed(accelerator)
    weights: dict[str, Any] = {}

    def read() -> None:
        if not (accelerator.is_main_process or deepspeed):
            return
        from_pretrained: Any = AutoModelForCausalLM.from_pretrained
        loaded, loading_info = from_pretrained(
            folder,
            config=copy.deepcopy(model.config),
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        problem = _describe_mismatch(loading_info)
        if problem is not None:
            raise UserError(
                f"belongs to another model: {problem}",
                where=str(folder),
                remedy="use the config of that model, or other weights",
            )
        weights.update(loaded.state_dict())

    read_or_raise_on_all_ranks(read)
    if deepspeed:
        names = zero.full_weights_on_meta(model)
        zero.copy_into_zero_bit16_weights(model, {name: weights[name] for name in names})
        return
    options = StateDictOptions(
        full_state_dict=True, broadcast_from_rank0=accelerator.num_processes > 1
    )
    set_model_state_dict(model, weights, options=options)


def _describe_mismatch(loading_info: LoadingInfo) -> str | None:
    """What does not fit, as part of a sentence; None if all fits."""
    found = {
        "missing": sorted(loading_info["missing_keys"]),
        "unknown": sorted(loading_info["unexpected_keys"]),
        "of another shape": sorted(key for key, *_ in loading_info["mismatched_keys"]),
    }
    if not any(found.values()):
        return None
    counts = ", ".join(f"{len(names)} tensors {kind}" for kind, names in found.items() if names)
    return f"{counts}, such as {next(names[0] for names in found.values() if names)}"
