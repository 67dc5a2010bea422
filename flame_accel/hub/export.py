"""The export of a trained model: the folder `hf/`, written at once.

Weights, config and tokenizer are written in `checkpoint/hf_model`, the card in `model_card`.
"""

from pathlib import Path, PurePath

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flame_accel.checkpoint.hf_model import gather_full_weights_to_main, save_hf_model
from flame_accel.config import UserError
from flame_accel.files import replace_folder
from flame_accel.hub.model_card import ModelOrigin, write_model_card
from flame_accel.hub.modeling_fla import CUSTOM_FOLDER
from flame_accel.hub.remote_code import CODE_FILE, write_remote_code_if_needed
from flame_accel.io_errors import describe_if_io_error
from flame_accel.observe import get_logger
from flame_accel.parallel import run_on_main_and_broadcast, unwrap_model

STALE_FILES = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    CODE_FILE,
)
"""Patterns of files that an earlier export may have written and the next one need not replace."""


def export_model(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype,
    card_origin: ModelOrigin,
) -> None:
    """Exports a trained model with its model card. Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        model: The model as Accelerate prepared it.
        tokenizer: Saved next to the weights.
        folder: Folder of the export; replaced atomically if it exists, but for the user's files.
        dtype: Dtype in which floating-point weights are stored.
        card_origin: The run and the step, for the model card.

    Raises:
        UserError: On every rank: an I/O error; an earlier export stays.
    """
    weights = gather_full_weights_to_main(accelerator, model, dtype)
    inner = unwrap_model(accelerator, model)

    def write() -> None:
        try:
            write_or_replace_export(
                folder, inner, weights, tokenizer, weights_dtype=dtype, card_origin=card_origin
            )
        except Exception as error:
            if (reason := describe_if_io_error(error)) is None:
                raise
            raise UserError(
                f"the model could not be exported: {reason}",
                where=str(folder),
                remedy="make room there, or mend the disk, and repeat the command: it exports what "
                "the last checkpoint holds",
            ) from error

    run_on_main_and_broadcast(accelerator, write)
    get_logger().info("exported: %s", folder)


def write_or_replace_export(
    folder: Path,
    model: PreTrainedModel,
    weights_to_empty: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    weights_dtype: torch.dtype,
    card_origin: ModelOrigin,
) -> None:
    """Writes the folder of an export. Called by one process.

    Args:
        folder: As of `export_model`.
        model: Provides the configuration and the names of tied weights; its weights are not read.
        weights_to_empty: All weights by name, on the CPU, in `weights_dtype` if floating-point.
        tokenizer: Saved next to the weights.
        weights_dtype: Dtype of the weights.
        card_origin: The run and the step, for the model card.
    """
    with replace_folder(folder, is_kept=_is_users_file) as temporary:
        save_hf_model(model, weights_to_empty, tokenizer, temporary, weights_dtype)
        write_remote_code_if_needed(temporary, model.config)
        write_model_card(temporary, card_origin, earlier_card_folder=folder)


def _is_users_file(path: PurePath) -> bool:
    """Whether a file of an earlier export that this one does not replace is the user's own."""
    if len(path.parts) > 1:
        return path.parts[0] != CUSTOM_FOLDER
    return not any(path.match(pattern) for pattern in STALE_FILES)
