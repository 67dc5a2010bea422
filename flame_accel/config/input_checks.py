"""Checks of a configuration against this machine: datasets, input paths, and the run folder.

Only what clearly is a path is looked for, since a name may also be one on the Hub. Rules that hold
on every machine are in `validation`.
"""

import difflib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from flame_accel.config.errors import BrokenRule
from flame_accel.config.evaluation_sets import MAIN_SET, SHIPPED_METRICS, evaluation_sets
from flame_accel.config.paths import looks_like_path
from flame_accel.config.schema import Config, option_value, options
from flame_accel.config.secrets import MASK
from flame_accel.config.training_options import PER_DATASET, dataset_names, split_per_dataset_option
from flame_accel.presets import (
    MODELS,
    existing_else_preset_path_or_unchanged,
    find_preset,
    nearest_preset_names,
)

_INPUTS = (
    "model.config",
    "model.tokenizer_path",
    "evaluation.prompts",
    "checkpoint.initial_load_path",
)


def find_broken_dataset_and_path_rules(config: Config) -> Iterator[BrokenRule]:
    """Dataset options that do not match, missing inputs, and a run folder that cannot be made."""
    masked = list(_find_masked_secrets(config))
    if masked:
        yield from masked
        return
    yield from _find_dataset_count_mismatches(config)
    yield from _find_missing_input_paths(config)
    yield from _find_tokenizer_missing_for_config_file(config)
    yield from _find_run_folder_not_creatable_or_writable(config.job.dump_folder)
    yield from _find_run_folder_equal_to_training_data_folder(config)


def _find_masked_secrets(config: Config) -> Iterator[BrokenRule]:
    """Values of the config.toml of a run, which holds no secrets."""
    for name in options():
        if MASK in str(option_value(config, name)):
            yield BrokenRule(
                options=(name,),
                rule=f"had an access token or a password where {MASK} is, which was not recorded",
                remedy=f"Give the whole value again: --{name} ...",
            )


def _find_dataset_count_mismatches(config: Config) -> Iterator[BrokenRule]:
    """Options with another number of entries than there are datasets."""
    training, names = config.training, dataset_names(config.training)
    count = len(names)
    if not all(names):
        yield BrokenRule(
            options=("training.dataset",),
            rule="has an empty name between commas",
            remedy="Name each dataset, separated by single commas.",
        )
    shares = training.data_probs
    if (shares is None and count > 1) or (shares is not None and len(shares) != count):
        found = "is required" if shares is None else f"has {len(shares)} numbers"
        datasets = f"{count} dataset{'s' * (count > 1)}"
        example = ",".join([f"{1 / max(1, count):.2g}"] * count)
        yield BrokenRule(
            options=("training.data_probs",),
            rule=f"{found} for {datasets}",
            remedy=f"Set each dataset's share of the tokens: --training.data_probs {example}.",
        )
    for option in PER_DATASET:
        entries = len(split_per_dataset_option(training, option))
        if entries != count:
            yield BrokenRule(
                options=(f"training.{option}",),
                rule=f"has {entries} entries for {count} datasets",
                remedy=f"Write {count} entries separated by commas; an empty one means none.",
            )


def _find_missing_input_paths(config: Config) -> Iterator[BrokenRule]:
    """Input paths that do not exist."""
    inputs = [(name, option_value(config, name)) for name in _INPUTS]
    inputs += [("training.dataset", name) for name in dataset_names(config.training)]
    inputs += [("model.custom", path) for path in config.model.custom]
    inputs += [
        ("evaluation.dataset" if each.name == MAIN_SET else "evaluation.sets", each.dataset)
        for each in evaluation_sets(config.evaluation)
    ]
    inputs += [
        ("evaluation.metrics", name)
        for name in config.evaluation.metrics
        if name not in SHIPPED_METRICS
    ]
    for name, path in inputs:
        missing = None if path is None else find_missing_path(name, path)
        if missing is not None:
            yield missing


def find_missing_path(option_name: str, path: str) -> BrokenRule | None:
    """The rule that an option breaks with what can only be a path and does not exist."""
    if _path_or_glob_match_exists(path):
        return None
    is_model = option_name == "model.config"
    if is_model and find_preset(MODELS, path) is not None:
        return None
    # every model on the Hub has an owner: a word alone is a preset or a path
    if not looks_like_path(path) and not (is_model and "/" not in path):
        return None
    return BrokenRule(
        options=(option_name,),
        rule=f"{path} does not exist",
        remedy=_missing_path_remedy(path, is_model=is_model),
    )


def _find_tokenizer_missing_for_config_file(config: Config) -> Iterator[BrokenRule]:
    """A model config that is a preset or a JSON file, which has no tokenizer next to it."""
    name = config.model.config
    if name is None or config.model.tokenizer_path is not None:
        return
    path = existing_else_preset_path_or_unchanged(MODELS, name)
    if os.path.isfile(path):
        yield BrokenRule(
            options=("model.tokenizer_path",),
            rule=f"is required: {name} has no tokenizer",
            remedy="Name a tokenizer on the Hub, a folder with one, or byte (one token per byte).",
        )


def _missing_path_remedy(path: str, *, is_model: bool) -> str:
    """What to name instead of a path that does not exist: the nearest existing names."""
    folder = Path(path).parent
    names = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
    near = difflib.get_close_matches(Path(path).name, names, n=3, cutoff=0.75)
    existing = [str(folder / name) for name in near]
    if is_model:
        existing += nearest_preset_names(MODELS, Path(path).name)
    hub = " A model on the Hub is owner/name." if is_model else ""
    if existing:
        return f"Did you mean {' or '.join(existing[:3])}?{hub}"
    return f"Name an existing path; it is relative to {os.getcwd()}.{hub}"


def _find_run_folder_not_creatable_or_writable(dump_folder: str) -> Iterator[BrokenRule]:
    """A run folder that cannot be created or written to."""
    folder = Path(dump_folder)
    # the root of the file system and the working directory always exist
    nearest = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not os.path.isdir(nearest):
        rule = f"{nearest} is a file, not a folder"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        rule = f"{nearest} cannot be written to"
    else:
        return
    remedy = "Name a folder that you can write to."
    yield BrokenRule(options=("job.dump_folder",), rule=rule, remedy=remedy)


def _find_run_folder_equal_to_training_data_folder(config: Config) -> Iterator[BrokenRule]:
    """A run folder that is a folder of data, whose files the run would read as its own data."""
    run_folder = os.path.realpath(config.job.dump_folder)
    for name in dataset_names(config.training):
        if os.path.isdir(name) and os.path.realpath(name) == run_folder:
            yield BrokenRule(
                options=("job.dump_folder",),
                rule=f"is the folder of the data, {name}",
                remedy="Name a folder of its own for the run, which may be inside that folder.",
            )


def _path_or_glob_match_exists(path: str) -> bool:
    """Whether a file, a folder, or a match of a glob pattern exists."""
    if glob.has_magic(path) and not os.path.exists(path):
        # one match is enough; a search through all folders may take long and is left to the data
        return "**" in path or next(glob.iglob(path), None) is not None
    return os.path.exists(path)
