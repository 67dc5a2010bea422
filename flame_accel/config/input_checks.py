"""Checks of a configuration against this machine: datasets, input paths, and the run folder.

Only what clearly is a path is looked for, since a name may also be one on the Hub. Rules that hold
on every machine are in `validation`.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from flame_accel.config.errors import BrokenRule
from flame_accel.config.schema import Config, value_of
from flame_accel.config.training_options import PER_DATASET, dataset_names, values_per_dataset
from flame_accel.presets import MODELS, find_preset, nearest_presets, suggest_presets

_INPUTS = (
    "model.config",
    "model.tokenizer_path",
    "evaluation.dataset",
    "checkpoint.initial_load_path",
)
_PREFIXES = ("./", "../", "/", "~/")
_SUFFIXES = (".json", ".jsonl", ".parquet", ".txt", ".py", ".gz", ".zst")


def find_broken_input_rules(config: Config) -> Iterator[BrokenRule]:
    """Dataset options that do not match, missing inputs, and a run folder that cannot be made."""
    yield from _mismatched_datasets(config)
    yield from _missing_inputs(config)
    yield from _unusable_run_folder(config.job.dump_folder)


def _mismatched_datasets(config: Config) -> Iterator[BrokenRule]:
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
        entries = len(values_per_dataset(training, option))
        if entries != count:
            yield BrokenRule(
                options=(f"training.{option}",),
                rule=f"has {entries} entries for {count} datasets",
                remedy=f"Write {count} entries separated by commas; an empty one means none.",
            )


def _missing_inputs(config: Config) -> Iterator[BrokenRule]:
    """Input paths that do not exist."""
    inputs = [(name, value_of(config, name)) for name in _INPUTS]
    inputs += [("training.dataset", name) for name in dataset_names(config.training)]
    inputs += [("model.custom", path) for path in config.model.custom]
    yield from _mistyped_preset(config.model.config)
    for name, path in inputs:
        is_preset = name == "model.config" and find_preset(MODELS, path or "") is not None
        if path is not None and not is_preset and _looks_like_path(path) and not _exists(path):
            yield BrokenRule(
                options=(name,),
                rule=f"{path} does not exist",
                remedy=f"Name an existing path; it is relative to {os.getcwd()}.",
            )


def _mistyped_preset(model_config: str | None) -> Iterator[BrokenRule]:
    """A model config whose name resembles a preset, instead of a name on the Hub."""
    if model_config is None or _looks_like_path(model_config) or os.path.exists(model_config):
        return
    if find_preset(MODELS, model_config) is None and nearest_presets(MODELS, model_config):
        yield BrokenRule(
            options=("model.config",),
            rule="is neither an existing path nor the name of a preset",
            remedy=f"{suggest_presets(MODELS, model_config)} A model on the Hub is owner/name.",
        )


def _unusable_run_folder(dump_folder: str) -> Iterator[BrokenRule]:
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


def _looks_like_path(value: str) -> bool:
    return "://" not in value and (value.startswith(_PREFIXES) or value.endswith(_SUFFIXES))


def _exists(path: str) -> bool:
    """Whether a file, a folder, or a match of a glob pattern exists."""
    if glob.has_magic(path) and not os.path.exists(path):
        # one match is enough; a search through all folders may take long and is left to the data
        return "**" in path or next(glob.iglob(path), None) is not None
    return os.path.exists(path)
