"""Probes made on the fly as datasets: `synthetic:mqar` and the others, with two splits.

Options are in `config.synthetic_tasks`, the documents in `data.synthetic`.
"""

from collections.abc import Sequence

from flame_accel.config.errors import UsageError, UserError
from flame_accel.config.synthetic_tasks import (
    NUMBERS_PREFIX,
    SyntheticTask,
    is_synthetic,
    parse_synthetic_task,
)
from flame_accel.config.values import InvalidValue
from flame_accel.data.encoded_datasets import IndexedDataset
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.synthetic.documents import DEFAULT_DOCUMENTS, SyntheticDocuments
from flame_accel.data.tokens.encoder import Encoder


class SyntheticDataset:
    """A task, with the splits train and validation."""

    splits: Sequence[str | None] = tuple(DEFAULT_DOCUMENTS)
    accepts_hf_split_slices = False

    def __init__(self, options: DatasetOptions) -> None:
        options.check_options_not_given("dataset_name", "data_dir", "data_files")
        try:
            self._task = parse_synthetic_task(options.dataset)
        except InvalidValue as error:
            raise UsageError(
                error.rule, where=options.error_location, remedy=error.remedy
            ) from error
        self._name = options.dataset

    @staticmethod
    def recognizes(options: DatasetOptions) -> bool:
        """Whether the name asks for a task."""
        return is_synthetic(options.dataset)

    def open_split(self, split: str | None) -> "SyntheticSource":
        """The documents of a split, which need a tokenizer yet."""
        assert split is not None
        return SyntheticSource(self._name, self._task, split)


class SyntheticSource:
    """The documents of a task in one split.

    Args:
        name: how messages name the data.
        task: the task with its options.
        split: train or validation.
    """

    def __init__(self, name: str, task: SyntheticTask, split: str) -> None:
        self.name = name
        self._task = task
        self._split = split

    def open_encoded(self, encoder: Encoder, held_out: HeldOut | None) -> IndexedDataset:
        """The documents as tokens.

        Raises:
            UserError: the tokenizer has fewer ids than a task of token ids uses, or training and
                validation are to share a split.
        """
        if held_out is not None:
            raise UserError(
                f"training and validation both read the split {self._split}",
                where=self.name,
                remedy="leave out dataset_split: each has a split of its own",
            )
        ids = self._task.num_token_ids
        if ids is not None and ids > encoder.vocabulary_size:
            raise UserError(
                f"has {ids:,} token ids, and the tokenizer {encoder.vocabulary_size:,}",
                where=self.name,
                remedy=f"add --model.tokenizer_path {NUMBERS_PREFIX}{ids}, whose tokens are the "
                "numbers below it",
            )
        return IndexedDataset(
            SyntheticDocuments(self.name, self._task, self._split, encoder),
            held_out,
            conversations=False,
            storage_description="made when it is read",
        )
