"""Paths that cannot work on this machine: missing inputs, a run folder that cannot be made.

Only what clearly is a path is looked at, since a name may as well be one on the Hub; few calls.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from flame_accel.config.mixture import dataset_names
from flame_accel.config.root import Config
from flame_accel.config.schema import value_of
from flame_accel.config.validation import Finding
from flame_accel.presets import MODELS, find_preset, nearest_presets, suggest_presets

_INPUTS = (
    "model.config",
    "model.tokenizer_path",
    "evaluation.dataset",
    "checkpoint.initial_load_path",
)
_PREFIXES = ("./", "../", "/", "~/")
_SUFFIXES = (".json", ".jsonl", ".parquet", ".txt", ".py", ".gz", ".zst")


def find_path_problems(config: Config) -> Iterator[Finding]:
    """Every input that is missing, and a run folder that cannot be made."""
    inputs = [(name, value_of(config, name)) for name in _INPUTS]
    inputs += [("training.dataset", name) for name in dataset_names(config.training)]
    inputs += [("model.custom", path) for path in config.model.custom]
    yield from _find_mistyped_preset(config.model.config)
    for name, path in inputs:
        is_preset = name == "model.config" and find_preset(MODELS, path or "") is not None
        if path is not None and not is_preset and _is_path(path) and not _is_there(path):
            yield Finding(
                options=(name,),
                rule=f"{path} is not there",
                remedy=f"Name a path that is there; it is relative to {os.getcwd()}.",
            )
    folder = Path(config.job.dump_folder)
    # the file system's root and the working directory are always there
    nearest = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not os.path.isdir(nearest):
        rule = f"{nearest} is a file, not a folder"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        rule = f"{nearest} cannot be written to"
    else:
        return
    remedy = "Name a folder that you can write to."
    yield Finding(options=("job.dump_folder",), rule=rule, remedy=remedy)


def _find_mistyped_preset(model_config: str | None) -> Iterator[Finding]:
    """A model config that is one typing error away from a preset, instead of a name on the Hub."""
    if model_config is None or _is_path(model_config) or os.path.exists(model_config):
        return
    if find_preset(MODELS, model_config) is None and nearest_presets(MODELS, model_config):
        yield Finding(
            options=("model.config",),
            rule="is neither a path that exists nor the name of a preset",
            remedy=f"{suggest_presets(MODELS, model_config)} A model on the Hub is owner/name.",
        )


def _is_path(value: str) -> bool:
    return "://" not in value and (value.startswith(_PREFIXES) or value.endswith(_SUFFIXES))


def _is_there(path: str) -> bool:
    if glob.has_magic(path) and not os.path.exists(path):
        # the first match will do; a search through all folders may take long and is not ours
        return "**" in path or next(glob.iglob(path), None) is not None
    return os.path.exists(path)
