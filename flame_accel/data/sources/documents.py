"""Sources to documents: what training.dataset may name, as texts that are read in any order.

Everything ends as an Arrow table of ``datasets``, mapped into memory and shared by all processes
of a machine. Which files a path means and how they are read is ``files``' part. No tokens here.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetsError

from flame_accel.config.errors import UserError
from flame_accel.data.sources import corpus, files

FINGERPRINT_DOCUMENTS = 512
"""How many documents, evenly spread, the fingerprint reads; smaller data is read whole."""
DEFAULT_SPLITS = {"training": "train", "evaluation": "validation"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """Texts by index."""

    dataset: Dataset
    """Has a column of strings ..."""
    column: str
    """... of this name."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str:
        """Text of a document; empty where the record holds none."""
        return self.dataset[index][self.column] or ""

    @property
    def fingerprint(self) -> str:
        """Hash of the number of documents and of evenly spread texts; wherever the data lies."""
        content = hashlib.sha256(str(len(self)).encode())
        count = min(len(self), FINGERPRINT_DOCUMENTS)
        for i in range(count):
            content.update(hashlib.sha256(self[i * len(self) // count].encode()).digest())
        return content.hexdigest()[:16]


def load_documents(
    dataset: str,
    *,
    section: Literal["training", "evaluation"] = "training",
    dataset_name: str | None = None,
    dataset_split: str | None = None,
    data_dir: str | None = None,
    data_files: str | None = None,
    text_column: str | None = None,
) -> Documents:
    """Open the documents that the options of a section name.

    Args:
        dataset: "python-stdlib", a file, a folder, a glob pattern, a folder written by
            ``save_to_disk``, or a name for ``datasets.load_dataset``.
        section: whose options these are: names them in messages, and decides the split of a source
            that has splits when none is asked for: train for training, validation for evaluation.
        dataset_name: configuration of a named dataset.
        dataset_split: split; None takes the section's, or everything where there are no splits.
        data_dir: folder within the dataset.
        data_files: files or patterns within the dataset, separated by commas.
        text_column: column that holds the text; None takes text, else content.

    Raises:
        UserError: nothing there, no such split or column, unreadable, or no text at all.
    """
    where = f"{section}.dataset {dataset!r}"
    flag = "--training.text_column"
    wanted = dataset_split, DEFAULT_SPLITS[section]
    patterns = [pattern.strip() for pattern in (data_files or "").split(",") if pattern.strip()]
    extras = {"dataset_name": dataset_name, "data_dir": data_dir, "data_files": data_files}
    path = Path(dataset)
    with _quiet_datasets():
        if dataset == corpus.CORPUS:
            _refuse_extras(extras, section, where)
            split = _choose_split(corpus.SPLITS, *wanted, where=where)
            table = Dataset.from_dict({"text": corpus.read_corpus(str(split))})
        elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            _refuse_extras(extras, section, where)
            table = _saved_table(dataset, wanted, where)
        elif path.exists() or files.GLOB_CHARACTERS.intersection(dataset):
            _refuse_extras(
                {"dataset_name": dataset_name} if path.is_dir() else extras, section, where
            )
            found = files.find_files(dataset, data_dir, patterns)
            # a file that was named is meant, whatever split its name speaks of
            alone: dict[str | None, list[Path]] = {None: found}
            groups = alone if path.is_file() else files.choose_files(found, where)
            split = _choose_split(list(groups), *wanted, where=where)
            table = files.load_files(groups[split], text_column, flag)
            text_column = None
        else:
            table = _named_table(dataset, dataset_name, wanted, data_dir, patterns, where)
    column = files.choose_column(table.column_names, text_column, where, flag)
    return _checked(Documents(dataset=table.select_columns([column]), column=column), where)


def _choose_split(
    splits: Sequence[str | None], asked: str | None, default: str, *, where: str
) -> str | None:
    """The split to read; a source without splits (None) is all of it, and calls itself train."""
    if None in splits and asked in (None, "train"):
        return None
    chosen = asked or default
    if chosen in splits:
        return chosen
    names = ", ".join(split or "train (all of it)" for split in splits)
    raise UserError(
        f"no split {chosen!r}; there are: {names}",
        where=where,
        remedy=f"name one of these with {where.split('.')[0]}.dataset_split",
    )


def _saved_table(path: str, wanted: tuple[str | None, str], where: str) -> Dataset:
    saved = datasets.load_from_disk(path)
    if isinstance(saved, DatasetDict):
        return saved[str(_choose_split(list(map(str, saved)), *wanted, where=where))]
    _choose_split([None], *wanted, where=where)
    return saved


def _named_table(
    dataset: str,
    name: str | None,
    wanted: tuple[str | None, str],
    data_dir: str | None,
    patterns: Sequence[str],
    where: str,
) -> Dataset:
    try:
        table = datasets.load_dataset(
            dataset,
            name,
            split=wanted[0] or wanted[1],
            data_dir=data_dir,
            data_files=list(patterns) or None,
        )
    # the library reports unknown names, configurations and splits through these
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(
            f"neither a local path nor a dataset that opens: {str(error).strip()}",
            where=where,
            remedy=f"check the path or name, {where.split('.')[0]}.dataset_name and "
            f"{where.split('.')[0]}.dataset_split",
        ) from error
    assert isinstance(table, Dataset)
    return table


def _refuse_extras(extras: Mapping[str, str | None], section: str, where: str) -> None:
    given = [f"{section}.{name}" for name, value in extras.items() if value is not None]
    if given:
        raise UserError(
            f"{', '.join(given)} cannot narrow this kind of dataset",
            where=where,
            remedy=f"leave {' and '.join(given)} out",
            exit_code=2,
        )


def _checked(documents: Documents, where: str) -> Documents:
    feature = documents.dataset.features[documents.column]
    if not isinstance(feature, datasets.Value) or feature.dtype not in ("string", "large_string"):
        raise UserError(
            f"column {documents.column!r} holds {feature}, not text",
            where=where,
            remedy="name the column that holds the text with --training.text_column",
        )
    if not any(documents[index] for index in range(len(documents))):
        raise UserError(
            f"none of its {len(documents)} documents has text" if len(documents) else "is empty",
            where=where,
            remedy="give a dataset with at least as many documents as a step has rows",
        )
    return documents


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep the library's progress bars off the console, where each rank would draw its own."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
