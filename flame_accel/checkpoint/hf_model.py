"""Weights in the Hugging Face format: what `from_pretrained` reads, written from any engine.

Used for the weights of every checkpoint and for the final export. The rest of a checkpoint is
written in `contents`, the rest of an export in `hub/export`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flame_accel.checkpoint.deepspeed_zero import gather_zero_weights_to_main
from flame_accel.files import write_json_atomically
from flame_accel.json_text import parse_json_text
from flame_accel.models.catalogue import fla_config_classes
from flame_accel.models.config_fields import INITIALIZATION_FIELDS
from flame_accel.models.norms import base_model_type
from flame_accel.parallel import is_deepspeed, unwrap_model

MAX_SHARD_SIZE = "5GB"
"""Larger models are written as several files, so that a broken transfer repeats a part."""

REFUSED_BY_TRANSFORMERS = {
    "bitnet": {
        "attention_dropout": "fla's BitNet, not that of transformers: import fla before it is "
        "loaded, or pass trust_remote_code=True"
    }
}
"""By model type of fla: a field that makes transformers' config class of that name raise.

transformers has another model under the name. Without fla it would load what fits of the weights
and draw the rest. fla's class keeps the field and ignores it; the error shows its value.
"""


def gather_full_weights_to_main(
    accelerator: Accelerator,
    model: nn.Module,
    dtype: torch.dtype,
    *,
    to_cpu: Callable[[Tensor], Tensor] = Tensor.cpu,
) -> dict[str, Tensor]:
    """All weights on the main process's CPU, floating-point ones in `dtype`; empty on other ranks.

    Every rank must call it. Weights are gathered and cast one at a time.

    Args:
        accelerator: The run's accelerator.
        model: The model as Accelerate prepared it.
        dtype: Of the floating-point weights that are returned.
        to_cpu: Copies a tensor to the CPU, or begins to. With the default one that is there already
            shares its memory with the model.
    """
    if is_deepspeed(accelerator):
        return gather_zero_weights_to_main(accelerator, model, dtype, to_cpu=to_cpu)
    inner = unwrap_model(accelerator, model)
    # tied weights have several names; under FSDP each name would be gathered into its own memory
    first_names = {parameter: name for name, parameter in inner.named_parameters()}
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    stored: dict[str, Any] = get_model_state_dict(inner)
    weights: dict[str, Tensor] = {}
    tied_names: list[tuple[str, str]] = []
    for name, sharded in stored.items():
        first = first_names[parameters[name]] if name in parameters else name
        # decided alike on every rank: all of them take part in the gathering
        if first != name and first in stored:
            tied_names.append((name, first))
            continue
        # cast before it is gathered: half the memory and traffic of fp32
        cast = sharded.to(dtype) if sharded.is_floating_point() else sharded
        full = cast.full_tensor() if isinstance(cast, DTensor) else cast
        if accelerator.is_main_process:
            weights[name] = to_cpu(full)
        # not while the next one is gathered
        del cast, full
    if accelerator.is_main_process:
        weights |= {name: weights[first] for name, first in tied_names}
    return weights


def save_hf_model(
    model: PreTrainedModel,
    consumed_weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    config_dtype: torch.dtype,
) -> None:
    """Writes config, weights and tokenizer for `from_pretrained(folder)`. Called by one process.

    Args:
        model: Provides the configuration and the names of tied weights; its weights are not read.
        consumed_weights: All by name, on the CPU, floating-point ones in `config_dtype`; the
            dictionary is emptied.
        tokenizer: Saved next to the weights.
        folder: Created if it does not exist.
        config_dtype: Dtype of the weights, which config.json names.
    """
    model.save_pretrained(folder, state_dict=consumed_weights, max_shard_size=MAX_SHARD_SIZE)
    _set_config_dtype_and_drop_initialization_fields(model, folder / "config.json", config_dtype)
    tokenizer.save_pretrained(folder)
    if tokenizer.pad_token is None:
        _set_missing_pad_in_tokenizer_and_generation_config(folder)
    _apply_umask_to_weights(folder)


def _set_config_dtype_and_drop_initialization_fields(
    model: PreTrainedModel, config_file: Path, weights_dtype: torch.dtype
) -> None:
    """Makes a config.json that of a trained model, stored in `weights_dtype`.

    What only says how weights are drawn is left out: transformers' Mamba2 would draw some anew.
    """
    fields = parse_json_text(config_file.read_bytes())
    # save_pretrained wrote the dtype of the model in memory; from_pretrained loads in the config's
    fields["dtype"] = str(weights_dtype).removeprefix("torch.")
    if base_model_type(model.config) in fla_config_classes():
        fields = {
            name: value for name, value in fields.items() if name not in INITIALIZATION_FIELDS
        }
        fields |= REFUSED_BY_TRANSFORMERS.get(model.config.model_type, {})
    if not model.is_remote_code():
        # of the folder that the config was read from
        fields.pop("auto_map", None)
    write_json_atomically(config_file, fields, indent=2)


def _set_missing_pad_in_tokenizer_and_generation_config(folder: Path) -> None:
    """Has a stored tokenizer and the generation pad with eos, without which batches are refused."""
    for name, field, eos in (
        ("tokenizer_config.json", "pad_token", "eos_token"),
        ("generation_config.json", "pad_token_id", "eos_token_id"),
    ):
        file = folder / name
        fields = parse_json_text(file.read_bytes()) if file.is_file() else {}
        token = fields.get(eos)
        if token is not None and fields.get(field) is None:
            fields[field] = token[0] if isinstance(token, list) else token
            write_json_atomically(file, fields, indent=2)


def _apply_umask_to_weights(folder: Path) -> None:
    """Gives weights the permissions of any new file; safetensors closes them to other users."""
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)
