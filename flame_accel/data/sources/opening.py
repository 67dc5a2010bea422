"""Opens the datasets of training and evaluation, and keeps their documents apart.

`DATASET_KINDS` lists every kind of dataset but `NamedDataset`. What a record becomes is decided
later, by `RecordSource.encode`.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from flame_accel.config.errors import UserError
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.sources.hf_datasets import hide_datasets_progress_bars
from flame_accel.data.sources.local_files import LocalPathOrGlob
from flame_accel.data.sources.named_datasets import NamedDataset
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.sources.python_stdlib import PythonStdlib
from flame_accel.data.sources.saved_datasets import SavedDataset
from flame_accel.data.sources.synthetic_tasks import SyntheticDataset
from flame_accel.data.sources.token_cache_folder import TokenCacheFolder
from flame_accel.data.stages import LocatedDataset, RecognizedDataset, RecordSource

DATASET_KINDS: Sequence[type[RecognizedDataset]] = (
    PythonStdlib,
    SyntheticDataset,
    TokenCacheFolder,
    SavedDataset,
    LocalPathOrGlob,
)
"""The first kind that recognizes a dataset reads it; `NamedDataset` reads what none recognizes."""
DEFAULT_SPLITS = {"training": "train", "evaluation": "validation"}


class DatasetSide(NamedTuple):
    """An opened dataset, and which of its documents are used."""

    source: RecordSource
    held_out: HeldOut | None
    """One side of a split by hash; None: all documents."""


class OpenedDatasets(NamedTuple):
    """The opened datasets of a run."""

    training: list[DatasetSide]
    evaluation: list[DatasetSide]


def open_chosen_split(options: DatasetOptions) -> RecordSource:
    """Open one dataset, all of its documents.

    Arrow tables of `datasets` and token caches are read in place; files and named datasets become
    a table, or are read in sequence with `options.streaming`.

    Raises:
        UserError: nothing there, no such split or column, unreadable, or no text at all.
    """
    with hide_datasets_progress_bars():
        located = locate_dataset(options)
        return located.open_split(_choose_split_or_section_default(located, options))


def open_training_and_evaluation(
    training: Sequence[DatasetOptions], evaluation: Sequence[DatasetOptions], held_out_share: float
) -> OpenedDatasets:
    """Open the datasets of training and of evaluation, and keep their documents apart.

    A validation set reads the same dataset as a training source if dataset (the path, however it is
    written), dataset_name, data_dir and data_files are equal. Its split is then the one it asks
    for, else "validation", else, if there is none, the split of that training source. If that is
    the split that the training source reads, the set takes the documents whose hash is below
    the share and training the others; both get the same object. All training sources that read
    this split of this dataset are divided, and no others. Different splits are never divided:
    whoever asks for overlapping ones (train and train[:1%]) gets them.

    Args:
        training: the datasets of the mixture.
        evaluation: the datasets of the validation sets.
        held_out_share: share of the documents that evaluation takes, 0 to 1.

    Raises:
        UserError: as `open_chosen_split`.
    """
    with hide_datasets_progress_bars():
        located = [locate_dataset(options) for options in training]
        splits = list(map(_choose_split_or_section_default, located, training))
        sources = [one.open_split(split) for one, split in zip(located, splits, strict=True)]
        divided: set[int] = set()
        targets: list[DatasetSide] = []
        for options in evaluation:
            target = locate_dataset(options)
            key = _dataset_key_without_split(options)
            same = [i for i, one in enumerate(training) if _dataset_key_without_split(one) == key]
            # without a validation split, that of the training source is divided
            shares_split = same and not options.dataset_split and "validation" not in target.splits
            split = (
                splits[same[0]]
                if shares_split
                else _choose_split_or_section_default(target, options)
            )
            shared = [i for i in same if splits[i] == split]
            divided.update(shared)
            if shared:
                held_out = HeldOut(held_out_share, "evaluation")
                targets.append(DatasetSide(sources[shared[0]], held_out))
            else:
                targets.append(DatasetSide(target.open_split(split), None))
        sides = [
            DatasetSide(source, HeldOut(held_out_share, "training") if i in divided else None)
            for i, source in enumerate(sources)
        ]
        return OpenedDatasets(sides, targets)


def locate_dataset(options: DatasetOptions) -> LocatedDataset:
    """Find out what a dataset's name means, and which splits it has.

    Raises:
        UserError: nothing there, or options that do not apply to this kind of dataset.
    """
    kinds = (kind for kind in DATASET_KINDS if kind.recognizes(options))
    return next(kinds, NamedDataset)(options)


def _dataset_key_without_split(options: DatasetOptions) -> tuple[str | None, ...]:
    """Equal for two sections that mean the same dataset, whichever split of it."""
    place = (
        os.path.realpath(options.dataset)
        if options.is_existing_path_or_has_wildcards
        else options.dataset
    )
    return place, options.dataset_name, options.data_dir, *options.data_files_list


def _choose_split_or_section_default(
    located: LocatedDataset, options: DatasetOptions
) -> str | None:
    """The split to read; None, all of a dataset without splits, may also be asked for as train.

    Raises:
        UserError: no such split; lists those that there are.
    """
    asked = options.dataset_split
    if None in located.splits and asked in (None, "train"):
        return None
    chosen = asked or DEFAULT_SPLITS[options.section]
    if chosen in located.splits or located.accepts_hf_split_slices:
        return chosen
    names = ", ".join(split or "train (all of it)" for split in located.splits)
    raise UserError(
        f"no split {chosen!r}; there are: {names}",
        where=options.error_location,
        remedy=f"name one of these with {options.option_prefix}dataset_split",
    )
