"""The options of each dataset of a run, from its sections `training` and `evaluation`.

`training` may name several datasets, separated by commas, each with its share of the tokens.
Nothing is opened here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flame_accel.config import (
    EvaluationConfig,
    TrainingConfig,
    dataset_names,
    split_per_dataset_option,
)
from flame_accel.config.errors import UsageError
from flame_accel.config.evaluation_sets import MAIN_SET, evaluation_sets
from flame_accel.config.training_options import PER_DATASET
from flame_accel.data.sources.record_parsing import MAX_DOCUMENT_BYTES, RecordColumn

GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetOptions:
    """The options of one dataset."""

    dataset: str
    """"python-stdlib", a file, a folder, a glob pattern, a folder written by ``save_to_disk`` or by
    ``prepare``, or a name for ``datasets.load_dataset``."""
    dataset_name: str | None = None
    """Configuration of a named dataset."""
    dataset_split: str | None = None
    """Name of the split; None: that of the section, or all of a dataset without splits."""
    data_dir: str | None = None
    """Folder within the dataset."""
    data_files: str | None = None
    """Files or patterns within the dataset, separated by commas."""
    text_column: str | None = None
    """Column of texts or conversations; None: text, else content, else messages."""
    streaming: bool = False
    """Read files and named datasets in sequence instead of copying them into a table."""
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    """Longer documents count as damaged."""
    section: Literal["training", "evaluation"] = "training"
    """Section of the options: its default split is train for training and validation for
    evaluation."""
    set_name: str | None = None
    """Name of the validation set; None: that of the section's own options."""

    @property
    def option_prefix(self) -> str:
        """What messages put in front of the name of an option."""
        return f"{self.section}." if self.set_name is None else f"evaluation.sets.{self.set_name}."

    @property
    def error_location(self) -> str:
        """How messages name the dataset: its option and its value."""
        return f"{self.option_prefix}dataset {self.dataset!r}"

    @property
    def data_files_list(self) -> list[str]:
        """`data_files` split at commas."""
        return [word.strip() for word in (self.data_files or "").split(",") if word.strip()]

    @property
    def is_existing_path_or_has_wildcards(self) -> bool:
        """Whether the dataset is an existing local path, or a glob pattern."""
        return Path(self.dataset).exists() or bool(GLOB_CHARACTERS.intersection(self.dataset))

    @property
    def record_column(self) -> RecordColumn:
        """Which column its records are read from, and how long they may be."""
        return RecordColumn(self.text_column, self.max_document_bytes)

    def check_options_not_given(self, *option_names: str) -> None:
        """Check that none of these options is given: this kind of dataset has no use for them.

        Raises:
            UserError: names those that are given.
        """
        given = [
            f"{self.option_prefix}{name}"
            for name in option_names
            if getattr(self, name) is not None
        ]
        if given:
            raise UsageError(
                f"{', '.join(given)} cannot narrow this kind of dataset",
                where=self.error_location,
                remedy=f"leave {' and '.join(given)} out",
            )


def training_dataset_options(training: TrainingConfig) -> list[DatasetOptions]:
    """Options of the datasets of training, one or several separated by commas."""
    return [
        DatasetOptions(
            dataset=dataset,
            dataset_name=name,
            dataset_split=split,
            data_dir=data_dir,
            data_files=data_files,
            text_column=training.text_column,
            streaming=training.streaming,
            max_document_bytes=training.max_document_bytes,
        )
        for dataset, name, split, data_dir, data_files in zip(
            dataset_names(training),
            *(split_per_dataset_option(training, option) for option in PER_DATASET),
            strict=True,
        )
    ]


def evaluation_dataset_options(
    evaluation: EvaluationConfig, *, read_like: TrainingConfig
) -> dict[str, DatasetOptions]:
    """Options of the dataset of each validation set, by its name; read like those of training."""
    return {
        each.name: DatasetOptions(
            dataset=each.dataset,
            dataset_name=each.dataset_name,
            dataset_split=each.dataset_split,
            data_dir=each.data_dir,
            data_files=each.data_files,
            text_column=read_like.text_column,
            streaming=read_like.streaming,
            max_document_bytes=read_like.max_document_bytes,
            section="evaluation",
            set_name=None if each.name == MAIN_SET else each.name,
        )
        for each in evaluation_sets(evaluation)
    }


def data_probs_divided_by_sum(training: TrainingConfig) -> tuple[float, ...]:
    """Share of each dataset of training in the tokens of the mixture; their sum is 1."""
    given = training.data_probs or (1.0,)
    assert len(given) == len(dataset_names(training))
    return tuple(share / sum(given) for share in given)
