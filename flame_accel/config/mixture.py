"""Several datasets in one option, separated by commas, and what the options beside it say of each.

Names and numbers only; what a dataset is, and whether it is there, is not known here.
"""

import os
from collections.abc import Iterator

from flame_accel.config.root import Config
from flame_accel.config.training import TrainingConfig
from flame_accel.config.validation import Finding

PER_DATASET = ("dataset_name", "dataset_split", "data_dir", "data_files")
"""Options of which each of several datasets has its own."""


def dataset_names(training: TrainingConfig) -> list[str]:
    """The datasets that training names; a path that exists is one, even if it has a comma."""
    if training.dataset is None:
        return []
    if os.path.exists(training.dataset):
        return [training.dataset]
    return [name.strip() for name in training.dataset.split(",")]


def entries(training: TrainingConfig, option: str) -> list[str | None]:
    """What an option of `PER_DATASET` says of each dataset, None where nothing."""
    value = getattr(training, option)
    count = len(dataset_names(training))
    if value is None or count == 1:
        return [value] * count
    return [entry.strip() or None for entry in value.split(",")]


def find_mixture_problems(config: Config) -> Iterator[Finding]:
    """Entries that do not match the datasets."""
    training, names = config.training, dataset_names(config.training)
    count = len(names)
    if not all(names):
        yield Finding(
            options=("training.dataset",),
            rule="has an empty name between commas",
            remedy="Name each dataset, separated by single commas.",
        )
    given = training.data_probs
    if (given is None and count > 1) or (given is not None and len(given) != count):
        found = "is required" if given is None else f"has {len(given)} numbers"
        datasets = f"{count} dataset{'s' * (count > 1)}"
        share = ",".join([f"{1 / max(1, count):.2g}"] * count)
        yield Finding(
            options=("training.data_probs",),
            rule=f"{found} for {datasets}",
            remedy=f"Give the share of each in the tokens, such as --training.data_probs {share}.",
        )
    for option in PER_DATASET:
        found = len(entries(training, option))
        if found != count:
            yield Finding(
                options=(f"training.{option}",),
                rule=f"has {found} entries for {count} datasets",
                remedy=f"Give {count}, separated by commas; an empty one stands for none.",
            )
