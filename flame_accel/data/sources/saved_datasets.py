"""Folders written by `save_to_disk` of the `datasets` library, read in place."""

from collections.abc import Sequence
from pathlib import Path

import datasets
from datasets import DatasetDict

from flame_accel.data.sources.hf_datasets import convert_datasets_errors
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.sources.table import Table, build_table_and_check_any_readable


class SavedDataset:
    """A folder that `save_to_disk` wrote: a dataset, or a dict of splits.

    Raises:
        UserError: the folder is incomplete.
    """

    accepts_hf_split_slices = False

    def __init__(self, options: DatasetOptions) -> None:
        options.check_options_not_given("dataset_name", "data_dir", "data_files")
        self._options = options
        with convert_datasets_errors(
            options, "save_to_disk has not written it, or not all of it", "write it again"
        ):
            saved = datasets.load_from_disk(options.dataset)
        self._splits: dict[str | None, datasets.Dataset] = (
            {str(name): split for name, split in saved.items()}
            if isinstance(saved, DatasetDict)
            else {None: saved}
        )

    @staticmethod
    def recognizes(options: DatasetOptions) -> bool:
        """Whether the folder has a file that `save_to_disk` writes."""
        path = Path(options.dataset)
        return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()

    @property
    def splits(self) -> Sequence[str | None]:
        """Names of the splits; [None] for a single dataset."""
        return list(self._splits)

    def open_split(self, split: str | None) -> Table:
        """The table of a split."""
        return build_table_and_check_any_readable(self._options, self._splits[split])
