"""Which datasets a run reads, in words that mean the same on every machine: no paths.

A run records them when it starts, as long as what was opened is known.
"""

import re
from pathlib import PurePath
from typing import TypedDict

from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from flame_accel.config.secrets import mask_secrets
from flame_accel.data.sources.opening import DATASET_KINDS
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.stages import EncodedDataset

HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]+", re.ASCII)


class DatasetDescription(TypedDict):
    """A dataset of a run, JSON-able."""

    name: str
    """Its name on the Hub, or the last part of its path."""
    on_hub: bool
    config: str | None
    """Name of its configuration; None: the default."""
    split: str | None
    """Split that the options name; None: the default."""
    share: float
    """Its share in the tokens of training, 0 to 1; 1 for validation."""
    documents: int | None
    """Number of records, skipped ones included; None: unknown."""
    conversations: bool
    held_out_share: float | None
    """Fraction of the documents that is held out from training for validation; None: nothing."""


def describe_dataset_without_paths(
    options: DatasetOptions, opened: EncodedDataset, *, share: float
) -> DatasetDescription:
    """A dataset that was opened with these options.

    Args:
        options: Of the dataset.
        opened: Its documents.
        share: In the tokens of training; 1 for validation.
    """
    on_hub = is_hub_dataset(options)
    name = mask_secrets(options.dataset)
    return {
        "name": name if on_hub else PurePath(name).name,
        "on_hub": on_hub,
        "config": options.dataset_name,
        "split": options.dataset_split,
        "share": share,
        "documents": opened.num_records,
        "conversations": opened.conversations,
        "held_out_share": opened.held_out.share if opened.held_out is not None else None,
    }


def is_hub_dataset(options: DatasetOptions) -> bool:
    """Whether a dataset that opens is one of the Hub, not files or a format of `datasets`."""
    return (
        not any(kind.recognizes(options) for kind in DATASET_KINDS)
        and options.dataset not in _PACKAGED_DATASETS_MODULES
        and HUB_NAME.fullmatch(options.dataset) is not None
    )
