"""The model that a command is given: which one is meant, and how it is loaded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flame_accel.checkpoint_files import (
    MANIFEST,
    STEP_PREFIX,
    find_damage,
    list_checkpoint_entries,
)
from flame_accel.config import UserError
from flame_accel.config.errors import UsageError
from flame_accel.json_text import parse_json_text
from flame_accel.model_files import MODEL_CONFIG, find_unreadable_or_missing_model_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_KINDS = (
    "a run folder, an export (hf/), a checkpoint (step-N) or a name on the Hub, with @REVISION"
)


class ModelSource(NamedTuple):
    """What `from_pretrained` is given."""

    name: str
    revision: str | None


class LoadedModel(NamedTuple):
    """A model on its device, and its tokenizer."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def find_model(folder_or_hub_name: str) -> ModelSource:
    """The folder of a model, or its name and revision on the Hub.

    Raises:
        UserError: There is no such folder, the Hub has no such model, or a checkpoint is damaged.
    """
    path = Path(folder_or_hub_name).expanduser()
    if path.is_dir():
        return ModelSource(str(find_model_folder(path)), None)
    repository, _, revision = folder_or_hub_name.partition("@")
    looks_like_path = folder_or_hub_name.startswith((".", "/", "~")) or repository.count("/") != 1
    if path.exists() or looks_like_path:
        near = sorted(each.name for each in path.parent.glob("step-*"))
        raise UsageError(
            "no such model folder",
            where=folder_or_hub_name,
            remedy=f"choose one of {', '.join(near)} there" if near else f"give {MODEL_KINDS}",
        )
    from huggingface_hub import try_to_load_from_cache

    from flame_accel.hub_lookup import check_model_exists_if_hub_reachable

    online = check_model_exists_if_hub_reachable(
        folder_or_hub_name, where=folder_or_hub_name, remedy=f"give {MODEL_KINDS}"
    )
    # for files that are known to be missing it returns an object
    cached = try_to_load_from_cache(repository, MODEL_CONFIG, revision=revision or None)
    if not online and not isinstance(cached, str):
        raise UserError(
            "is not in the local cache, and the Hub cannot be reached",
            where=folder_or_hub_name,
            remedy="check the network and HF_HUB_OFFLINE; a folder needs no network",
        )
    return ModelSource(repository, revision or None)


def find_model_folder(path: Path) -> Path:
    """The folder of the model that a path means: an export or a checkpoint.

    Of a run folder it is the export if there is one, else the newest checkpoint.

    Raises:
        UserError: There is no model, a checkpoint is damaged, or a file cannot be read.
    """
    exports = [each for each in (path, path / "hf") if (each / MODEL_CONFIG).is_file()]
    is_checkpoint = any((path / name).is_file() for name in (MANIFEST, "state.json"))
    if is_checkpoint or not exports:
        return find_checkpoint_or_newest(path)
    problem = find_unreadable_or_missing_model_file(exports[0])
    if problem is not None:
        raise UserError(problem.what, where=str(exports[0]), remedy=problem.remedy)
    return exports[0]


def find_checkpoint_or_newest(checkpoint_or_run_folder: Path) -> Path:
    """The checkpoint itself, or the newest one of a run folder.

    Raises:
        UserError: There is no checkpoint, or it is damaged.
    """
    path = checkpoint_or_run_folder
    if not path.is_dir():
        steps = sorted(near.name for near in path.parent.glob(f"{STEP_PREFIX}*"))
        raise UsageError(
            "no such folder",
            where=str(path),
            remedy=f"choose one of {', '.join(steps)} there"
            if steps
            else "choose a run folder, or a step-N folder of a run",
        )
    folders = [path] if (path / MANIFEST).is_file() else []
    if not folders:
        by_step = {
            step: folder
            for parent in path.iterdir()
            for step, folder in list_checkpoint_entries(parent).checkpoints.items()
            if (folder / MANIFEST).is_file()
        }
        folders = [by_step[max(by_step)]] if by_step else []
    if not folders:
        raise UserError(
            "contains no complete checkpoint",
            where=str(path),
            remedy="choose a run folder, or a step-N folder of a run",
        )
    damage = find_damage(folders[0])
    if damage is not None:
        raise UserError(
            f"is damaged: {damage}", where=str(folders[0]), remedy="choose another checkpoint"
        )
    return folders[0]


def has_no_chat_template(source: ModelSource) -> bool:
    """Whether a folder has no chat template; False if only loading the tokenizer can tell."""
    folder = Path(source.name)
    try:
        fields = parse_json_text((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return False
    files = ("chat_template.*", "additional_chat_templates/*")
    return not (
        {"chat_template", "auto_map"} & set(fields)
        or any(True for pattern in files for _ in folder.glob(pattern))
    )


def has_no_tokenizer(source: ModelSource) -> bool:
    """Whether a folder has no file of a tokenizer; False for a model of the Hub."""
    folder = Path(source.name)
    return folder.is_dir() and not any(
        any(folder.glob(pattern)) for pattern in ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
    )


def check_any_gpu_exists_if_cuda_asked(device: str | None) -> None:
    """Refuses a GPU where there is none."""
    if device is None or not device.startswith("cuda"):
        return
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "there is no GPU here", where=f"--device {device}", remedy="leave the option out"
        )


def load_model_and_tokenizer(
    source: ModelSource,
    *,
    dtype: str | None,
    device: str | None,
    custom_modules: Sequence[str],
    trust_remote_code: bool,
) -> LoadedModel:
    """Loads both, the model in evaluation mode.

    Args:
        source: As `find_model` returns it.
        dtype: Dtype of the weights; None is bfloat16 on a GPU, else float32.
        device: "cpu", "cuda" or "cuda:N"; None is a GPU if there is one.
        custom_modules: Packages or files that register architectures.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        UserError: They cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from flame_accel.models import register_models

    logging.disable_progress_bar()
    register_models(custom_modules)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_any_gpu_exists_if_cuda_asked(device)
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    options = {"revision": source.revision, "trust_remote_code": trust_remote_code}
    with explain_load_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(source.name, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.name, dtype=getattr(torch, dtype), **options
        )
        return LoadedModel(model.to(device).eval(), tokenizer)


@contextmanager
def explain_load_errors(source: ModelSource) -> Iterator[None]:
    """Says what to do about a model that transformers cannot load in the block.

    Raises:
        UserError: In place of its errors.
    """
    from safetensors import SafetensorError

    try:
        yield
    # transformers has no exception of its own for a folder or repository that is no model
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        remedy = f"give {MODEL_KINDS}"
        if "trust_remote_code" in str(error):
            remedy = "it needs code of its own: --trust_remote_code, if you trust its author"
        elif isinstance(error, ValueError) and "model type" in str(error):
            remedy = "name the module that registers the architecture: --custom path/to/it"
        raise UserError(
            f"cannot be loaded: {str(error).strip().splitlines()[0]}",
            where=source.name,
            remedy=remedy,
        ) from error
