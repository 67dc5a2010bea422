"""What the options say of each dataset: several are separated by commas, each with its share.

Nothing is opened here.
"""

from dataclasses import dataclass
from typing import Literal

from flame_accel.config import EvaluationConfig, TrainingConfig, dataset_names, values_per_dataset
from flame_accel.config.training_options import PER_DATASET
from flame_accel.data.sources.table import MAX_DOCUMENT_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetOptions:
    """One dataset, as the options of a section name it."""

    dataset: str
    """"python-stdlib", a file, a folder, a glob pattern, a folder written by ``save_to_disk`` or by
    ``prepare``, or a name for ``datasets.load_dataset``."""
    dataset_name: str | None = None
    """Configuration of a named dataset."""
    dataset_split: str | None = None
    """Split; None takes the section's, or everything where there are no splits."""
    data_dir: str | None = None
    """Folder within the dataset."""
    data_files: str | None = None
    """Files or patterns within the dataset, separated by commas."""
    text_column: str | None = None
    """Column of texts or conversations; None takes text, else content, else messages."""
    streaming: bool = False
    """Read files and named datasets in sequence instead of copying them into a table."""
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    """Longer documents are damaged."""
    section: Literal["training", "evaluation"] = "training"
    """Whose options these are: names them in messages, and decides the split when none is asked
    for: train for training, validation for evaluation."""

    @property
    def where(self) -> str:
        """What messages call the dataset."""
        return f"{self.section}.dataset {self.dataset!r}"

    @property
    def patterns(self) -> list[str]:
        """The patterns of `data_files`."""
        return [word.strip() for word in (self.data_files or "").split(",") if word.strip()]


def training_dataset_options(training: TrainingConfig) -> list[DatasetOptions]:
    """The datasets that training names, one or several separated by commas."""
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
            *(values_per_dataset(training, option) for option in PER_DATASET),
            strict=True,
        )
    ]


def evaluation_dataset_options(
    evaluation: EvaluationConfig, training: TrainingConfig
) -> DatasetOptions | None:
    """The dataset that evaluation names, read as training reads its own; None if there is none."""
    if evaluation.dataset is None:
        return None
    return DatasetOptions(
        dataset=evaluation.dataset,
        dataset_name=evaluation.dataset_name,
        dataset_split=evaluation.dataset_split,
        data_dir=evaluation.data_dir,
        data_files=evaluation.data_files,
        text_column=training.text_column,
        streaming=training.streaming,
        max_document_bytes=training.max_document_bytes,
        section="evaluation",
    )


def shares(training: TrainingConfig) -> tuple[float, ...]:
    """Share of each dataset in the tokens of the mixture; their sum is 1."""
    given = training.data_probs or (1.0,)
    assert len(given) == len(dataset_names(training))
    return tuple(share / sum(given) for share in given)
