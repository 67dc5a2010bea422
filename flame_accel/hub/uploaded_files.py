"""Which files of an export or a checkpoint are uploaded: those that a model is known to consist of.

Without torch, so that `flame-accel push` answers a mistake at once. What is added to them is made
in `upload_folder`.
"""

import fnmatch
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from flame_accel import files
from flame_accel.checkpoint_files import MANIFEST, TEMPORARY_INFIX
from flame_accel.config import UserError
from flame_accel.json_text import parse_json_text
from flame_accel.model_files import (
    MODEL_CONFIG,
    WEIGHTS_INDEX,
    find_unreadable_or_missing_model_file,
    shard_names_in_index_or_empty,
)

CONFIG_FILE = "config.toml"
"""File that makes a folder one of a run."""
CHECKPOINT_ONLY = (MANIFEST, "state.json", "data.json", "ranks.json", "rank-*.json")
"""Files of a checkpoint, in addition to those in subfolders, that are not part of the model."""
MODEL_FILES = (
    MODEL_CONFIG, "generation_config.json",
    "model.safetensors", "model-*-of-*.safetensors", WEIGHTS_INDEX,
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model*", "special_tokens_map.json",
    "added_tokens.json", "*vocab*.json", "*vocab*.txt", "vocab.bpe", "encoder.json", "merges.txt",
    "tekken.json", "*.tiktoken", "spiece.model", "spm*.model", "sentencepiece*.model", "*.spm",
    "bpe.codes", "dict.txt", "emoji.json", "normalizer.json", "byte_maps.json", "word_shape.json",
    "word_pronunciation.json", "prophetnet.tokenizer",
    "chat_template.*", "additional_chat_templates/*.jinja",
    "README.md", "loss_curve.png", "LICENSE*", "NOTICE*",
    "custom_code/*",
)  # fmt: skip
"""Patterns of what a model consists of; code and pictures are found by what refers to them."""
RELATIVE_IMPORT = re.compile(r"^\s*(?:from|import)\s+(\.+)([\w.]+)", re.M)
CARD_PICTURE = re.compile(
    r"""[("'](?:\./)?([^\s()"':]+\.(?:png|jpe?g|gif|svg|webp))[)"'\s]""", re.I
)
"""A file that a card shows, in Markdown or HTML; not one of another host."""


class SelectedFiles(NamedTuple):
    """Which files of a folder are uploaded."""

    files: list[str]
    """Paths relative to the folder, in alphabetical order."""
    left_out: list[str]
    """Other visible files; of a checkpoint without the state of training."""

    @property
    def left_out_line(self) -> str | None:
        """What is left out, for the user; None if nothing is."""
        names = ", ".join(self.left_out)
        return f"not uploaded, since they are no part of the model: {names}" if names else None


def has_checkpoint_manifest(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run, rather than an exported model."""
    return (folder / MANIFEST).is_file()


def select_model_files_or_raise(folder: Path) -> SelectedFiles:
    """The files of a checkpoint or exported model that are part of the model.

    Raises:
        UserError: The folder holds no model in the Hugging Face format, or such a file is a link
            out of it.
    """
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    paths = sorted(path.relative_to(folder) for path in found)
    visible = [
        path.as_posix()
        for path in paths
        if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    ]
    known = {
        *shard_names_in_index_or_empty(folder),
        *_code_files(folder),
        *_image_names_in_card(folder),
    }
    chosen = [name for name in visible if name in known or _is_model_file(name)]
    left_out = [name for name in visible if name not in chosen]
    if has_checkpoint_manifest(folder):
        patterns = (*CHECKPOINT_ONLY, "*/*")
        left_out = [name for name in left_out if not _matches_any_pattern(name, patterns)]
    if MODEL_CONFIG not in chosen or not any(name.endswith(".safetensors") for name in chosen):
        raise UserError(
            "holds no model: it needs config.json and safetensors",
            where=str(folder),
            remedy="choose a run folder, its hf/, one of its step-N folders, or an exported model",
        )
    for name in chosen:
        if not _is_inside_or_cached(folder, name):
            raise UserError(
                "is a link out of the folder of the model, or to nothing",
                where=str(folder / name),
                remedy="put a copy of the file there if it is to be uploaded",
            )
    return SelectedFiles(chosen, left_out)


def _is_model_file(name: str) -> bool:
    # fnmatch's * takes slashes as well
    deep = "/" in name
    return _matches_any_pattern(name, (p for p in MODEL_FILES if ("/" in p) == deep))


def _code_files(folder: Path) -> set[str]:
    """The files that `auto_map` of config or tokenizer names, with what they import."""
    found: set[str] = set()
    modules: list[str] = []
    for config in (MODEL_CONFIG, "tokenizer_config.json"):
        try:
            text = (folder / config).read_text(encoding="utf-8")
            named = parse_json_text(text)["auto_map"].values()
            values = [v for each in named for v in (each if isinstance(each, list) else [each])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        # with -- it is the code of another repository
        modules += [str(value).rpartition(".")[0] for value in values if "--" not in str(value)]
    while modules:
        base = modules.pop()
        for name in (f"{base}.py", f"{base}/__init__.py"):
            if name in found or not _is_inside_or_cached(folder, name):
                continue
            found.add(name)
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            for dots, module in RELATIVE_IMPORT.findall(text):
                up = PurePosixPath(name).parent.joinpath(*[".."] * (len(dots) - 1))
                modules.append(os.path.normpath(up / module.replace(".", "/")))
    return found


def _image_names_in_card(folder: Path) -> set[str]:
    if not _is_inside_or_cached(folder, "README.md"):
        return set()
    text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    return set(CARD_PICTURE.findall(text))


def _is_inside_or_cached(folder: Path, name: str) -> bool:
    """Whether a file is one of the folder; in a snapshot of the Hub's cache, also of its blobs."""
    folder, file = folder.resolve(), (folder / name).resolve()
    is_snapshot = folder.parent.name == "snapshots"
    places = [folder, *([folder.parents[1] / "blobs"] if is_snapshot else [])]
    return file.is_file() and any(file.is_relative_to(place) for place in places)


def select_files_of_complete_model_or_raise(folder: Path) -> SelectedFiles:
    """Checks that a folder holds a whole model; returns what of it is uploaded.

    Raises:
        UserError: It does not, or is what an interrupted save has left.
    """
    selected = select_model_files_or_raise(folder)
    remedy = "choose a run folder, its hf/, one of its step-N folders, or an exported model"
    if TEMPORARY_INFIX in folder.name:
        what = "is not complete: saving it was interrupted"
        raise UserError(what, where=str(folder), remedy=remedy)
    unreadable = find_unreadable_or_missing_model_file(folder)
    if unreadable is not None:
        raise UserError(unreadable.what, where=str(folder), remedy=unreadable.remedy)
    return selected


def checksum_of_model_files(folder: Path, suffix: str = "") -> str:
    """A checksum of the files of a model that are uploaded, as they are in its folder.

    Args:
        folder: Of the model.
        suffix: Only of files whose names end with it.
    """
    chosen = [name for name in select_model_files_or_raise(folder).files if name.endswith(suffix)]
    checksums = {name: files.file_xxh3(folder / name) for name in chosen}
    return files.bytes_xxh3(json.dumps(checksums, sort_keys=True).encode())


def find_run_folder_of_model(folder: Path) -> Path | None:
    """The run folder that an export or a checkpoint lies in; None if there is none."""
    parents = folder.resolve().parents
    for parent in parents if has_checkpoint_manifest(folder) else parents[:1]:
        if (parent / CONFIG_FILE).is_file():
            return parent
    return None


def _matches_any_pattern(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
