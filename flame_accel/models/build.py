"""From the name of a model config to a model whose vocabulary is the tokenizer's.

Registering architectures lives in `registration.py`, loading trained weights in `checkpoint/`,
precision and sharding in `parallel/`.
"""

import copy
import difflib
import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from flame_accel.config.errors import UsageError, UserError
from flame_accel.files import is_git_lfs_pointer
from flame_accel.hub_lookup import check_model_exists_if_hub_reachable, split_hub_name_unless_path
from flame_accel.json_text import parse_json_text
from flame_accel.models.instantiate import (
    describe_error_with_type_and_file_name,
    instantiate_on_default_device,
)
from flame_accel.models.norms import copy_config_with_norm, fuse_llama_norms_and_check_norm_type
from flame_accel.models.packed_inputs import accept_cu_seqlens_if_transformers_model
from flame_accel.models.training_checks import check_learned_positions_suffice, check_no_router_loss
from flame_accel.presets import MODELS, existing_else_preset_path_or_unchanged

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
"""What can be a name on the Hub: `name` or `owner/name`, with `@revision` or without."""


def load_model_config(
    name_or_path: str, *, trust_remote_code: bool = False, custom_modules: Sequence[str] = ()
) -> PreTrainedConfig:
    """Reads a model config: a JSON file, a folder with one, a preset, or a name on the Hub.

    A field that the config class does not know is kept, as transformers does, and logged with the
    nearest field that it knows.

    Args:
        name_or_path: a file in the Hugging Face format, a folder with a config.json, the name of
            a preset, or a name on the Hub, with `@revision` or without.
        trust_remote_code: whether code next to the config (its `auto_map`) may run.
        custom_modules: What `register_models` imported, for the error about an unknown model type.

    Raises:
        UserError: it is missing, not a JSON object, of an unknown `model_type`, or has values that
            its config class refuses.
    """
    name_or_path = existing_else_preset_path_or_unchanged(MODELS, name_or_path)
    path = Path(name_or_path)
    if not path.exists() and path.suffix != ".json" and HUB_NAME.fullmatch(name_or_path):
        return _load_auto_config(name_or_path, trust_remote_code)
    file = path / "config.json" if path.is_dir() else path
    fields = _read_model_config_json(file)
    if trust_remote_code and "auto_map" in fields and file.name == "config.json":
        return _load_auto_config(str(file.parent), trust_remote_code)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise _unknown_model_type_error(file, fields, custom_modules)
    config_class = CONFIG_MAPPING[model_type]
    try:
        config = config_class.from_dict(fields)
    except Exception as error:
        raise _model_config_error(
            file,
            f"{config_class.__name__} refuses these values: "
            f"{describe_error_with_type_and_file_name(error)}",
            "correct the field that the message names",
        ) from error
    _warn_about_unknown_fields(file, fields, config_class)
    return config


def build_model(
    config: PreTrainedConfig,
    *,
    vocabulary_size: int,
    bos_token_id: int | None,
    eos_token_id: int | None,
    pad_token_id: int | None = None,
    norm_type: str | None = None,
    seed: int,
    trust_remote_code: bool = False,
    trained_length: int | None = None,
) -> PreTrainedModel:
    """Builds a causal language model with initial weights, on the CPU and in float32.

    The weights are the architecture's own initialization under `seed`: the same on every rank.

    Args:
        config: Shape of the model; it is copied, not changed.
        vocabulary_size: rows of the embedding, as many as the tokenizer has ids, added tokens
            included. It is not rounded.
        bos_token_id: token that starts a document.
        eos_token_id: token that ends one.
        pad_token_id: token that fills a batch. Models make it the `padding_idx` of their embedding,
            a row without gradients; so the model config has none where it is also bos or eos.
        norm_type: kind of the norms of the blocks and before the head (`norms`); None leaves those
            of the config.
        seed: Seed of the initial weights.
        trust_remote_code: whether the code that the config's `auto_map` names may run.
        trained_length: number of tokens per document or row in training, which the config is to
            know as `max_position_embeddings` (if it has the field and the field means no more);
            None leaves the config as it is.

    Raises:
        UserError: as `instantiate_on_default_device`, or the model does not take such norms, has
            fewer positions than it is trained on, or a loss that is not of its targets alone.
    """
    check_no_router_loss(config)
    config = (
        copy.deepcopy(config) if norm_type is None else copy_config_with_norm(config, norm_type)
    )
    config.vocab_size = vocabulary_size
    config.bos_token_id = bos_token_id
    config.eos_token_id = eos_token_id
    config.pad_token_id = None if pad_token_id in (bos_token_id, eos_token_id) else pad_token_id
    config.dtype = torch.float32
    with torch.device("cpu"):
        model = instantiate_on_default_device(
            config, seed=seed, trust_remote_code=trust_remote_code
        )
        if norm_type is not None:
            fuse_llama_norms_and_check_norm_type(model, norm_type)
    if model.can_generate():
        model.generation_config.bos_token_id = bos_token_id
        model.generation_config.eos_token_id = eos_token_id
        model.generation_config.pad_token_id = pad_token_id
    accept_cu_seqlens_if_transformers_model(model)
    if trained_length is not None:
        check_learned_positions_suffice(model, trained_length)
        _increase_max_position_embeddings(model, trained_length)
    return model


def _increase_max_position_embeddings(model: PreTrainedModel, trained_length: int) -> None:
    """Has the config say that the model can read as many tokens as it is trained on.

    For fla's models `max_position_embeddings` is only the initial size of the rotary cache. A model
    is left alone where it means more: the number of learned positions, or the base of scaled
    rotary embeddings.
    """
    config = model.config
    current = getattr(config, "max_position_embeddings", None)
    if not isinstance(current, int) or current >= trained_length:
        return
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    learns_positions = any(module is not model.get_input_embeddings() for module in embeddings)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    scales_rotary = bool(scaling) and scaling.get("rope_type", "default") != "default"
    if not learns_positions and not scales_rotary:
        config.max_position_embeddings = trained_length


def padded_or_stored_embedding_rows_or_raise(
    vocabulary_size: int, *, multiple: int, stored_rows: int | None
) -> int:
    """Number of rows of the embedding, and of the head.

    Args:
        vocabulary_size: Number of the tokenizer's ids.
        multiple: Fresh weights have the next multiple of it.
        stored_rows: Rows of the weights to start from, which are kept; None for fresh weights.

    Raises:
        UserError: The stored weights have fewer rows than the tokenizer has ids.
    """
    if stored_rows is None:
        return -(-vocabulary_size // multiple) * multiple
    if stored_rows < vocabulary_size:
        raise UserError(
            f"the weights to start from have {stored_rows} rows (vocab_size), and the tokenizer "
            f"has {vocabulary_size} ids",
            where="model.tokenizer_path",
            remedy="use the tokenizer of these weights: omit model.tokenizer_path if it is next to "
            "them",
        )
    return stored_rows


def _model_config_error(where: object, what: str, remedy: str) -> UserError:
    return UsageError(what, where=f"--model.config {where}", remedy=remedy)


def _read_model_config_json(file: Path) -> dict[str, Any]:
    try:
        fields = parse_json_text(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _model_config_error(
            file, "no such file", _missing_config_file_remedy(file)
        ) from error
    except json.JSONDecodeError as error:
        if is_git_lfs_pointer(file):
            raise _model_config_error(
                file, "is a Git LFS pointer, not the file itself", "run `git lfs pull` there"
            ) from error
        raise _model_config_error(
            f"{file}:{error.lineno}",
            f"not valid JSON: {error.msg} (column {error.colno})",
            "correct that line; JSON has no comments and no comma after the last field",
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        raise _model_config_error(
            file, f"cannot be read as text: {error}", "give the JSON config of a model"
        ) from error
    if not isinstance(fields, dict):
        raise _model_config_error(
            file,
            f"holds a JSON {type(fields).__name__}, not an object",
            'a model config looks like {"model_type": "gla", "hidden_size": 1024, ...}',
        )
    # transformers writes infinity, which JSON has not, as an object
    return PreTrainedConfig._decode_special_floats(fields)


def _missing_config_file_remedy(missing_file: Path) -> str:
    if missing_file.name == "config.json" and missing_file.parent.is_dir():
        return (
            "the folder does not say which model it holds: name the config of the model, "
            "--model.config FILE, with the folder as --checkpoint.initial_load_path if its weights "
            "are meant"
        )
    known = [str(path) for path in sorted(missing_file.parent.glob("*.json"))]
    close = difflib.get_close_matches(str(missing_file), known, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return (
        f"the path is taken from {Path.cwd()}; give a JSON file, a folder with a config.json or a "
        "name on the Hub"
    )


def _load_auto_config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    online = Path(name).exists() or check_model_exists_if_hub_reachable(
        name, where=f"--model.config {name}", remedy="a path must name an existing file or folder"
    )
    repo_id, revision = split_hub_name_unless_path(name)
    try:
        config = AutoConfig.from_pretrained(
            repo_id,
            revision=revision,
            trust_remote_code=trust_remote_code,
            local_files_only=not online,
        )
    except (OSError, ValueError) as error:
        what = f"no model config can be loaded: {str(error).splitlines()[0]}"
        remedy = "check the name, the network and your access (HF_TOKEN); a file needs no network"
        if not online:
            what = f"not in the local cache, and the Hub cannot be reached: {what}"
            remedy = "check the network and HF_HUB_OFFLINE; a file needs no network"
        elif "trust_remote_code" in str(error):
            remedy = "it needs code of its own: --model.trust_remote_code, if you trust its author"
        raise _model_config_error(name, what, remedy) from error
    _warn_about_unknown_fields(name, config.to_dict(), type(config))
    return config


def _unknown_model_type_error(
    file: Path, fields: Mapping[str, Any], custom_modules: Sequence[str]
) -> UserError:
    model_type = fields.get("model_type")
    close = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING.keys()), n=3)
    if "auto_map" in fields:
        remedy = "it comes with code of its own: --model.trust_remote_code, if you trust its author"
    elif close:
        remedy = f"did you mean {' or '.join(close)}?"
    elif custom_modules:
        remedy = "call AutoConfig.register and AutoModelForCausalLM.register for it there"
    else:
        remedy = "name the module that registers your own architecture: --model.custom path/to/it"
    what = f"model_type {model_type!r} is not known to fla or transformers"
    if custom_modules:
        what += f", and {', '.join(custom_modules)} (--model.custom) did not register it"
    return _model_config_error(
        file, what if "model_type" in fields else "has no model_type", remedy
    )


def _warn_about_unknown_fields(
    where: object, fields: Mapping[str, Any], config_class: type[PreTrainedConfig]
) -> None:
    parameters = inspect.signature(config_class).parameters
    # attributes that the class sets by itself are saved too, and come back as fields
    own = config_class.from_dict({name: fields[name] for name in fields.keys() & parameters.keys()})
    known = {"model_type", "auto_map", "torch_dtype", "_name_or_path", *parameters, *own.to_dict()}
    known.update(inspect.signature(PreTrainedConfig).parameters)
    for name in sorted(fields.keys() - known):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        logger.warning("%s: %s has no field '%s'%s", where, config_class.__name__, name, hint)
