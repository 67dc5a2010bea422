"""Sources, opened: what a dataset's name leads to, and who keeps which of its documents.

Which files a path means is ``files``' part, how records are read ``readers``', documents by index
``table``'s, documents in sequence ``shards``'. No tokens here.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.exceptions import DatasetGenerationError, DatasetsError

from flame_accel.config.errors import UserError
from flame_accel.data.cache.file_format import MANIFEST, UNFINISHED
from flame_accel.data.documents import Skipped
from flame_accel.data.sources import files
from flame_accel.data.sources import python_stdlib as corpus
from flame_accel.data.sources.options import DatasetOptions, training_dataset_options
from flame_accel.data.sources.record_hashes import HeldOut
from flame_accel.data.sources.shards import FileShards, NamedShards, readable_split_urls
from flame_accel.data.sources.table import Table, choose_record_column, copy_files_to_table
from flame_accel.data.stages import Shards

__all__ = [
    "DatasetOptions",
    "Opened",
    "RecordSource",
    "open_source",
    "open_training_and_evaluation",
    "training_dataset_options",
]

DEFAULT_SPLITS = {"training": "train", "evaluation": "validation"}
RecordSource = Table | Shards | Path
"""Documents by index; in sequence; or tokenised already, the folder of a token cache."""


class Opened(NamedTuple):
    """A source, and which of its documents are meant."""

    source: RecordSource
    held_out: HeldOut | None
    """None: all of them."""


class _Found(NamedTuple):
    """What a dataset's name leads to."""

    splits: Sequence[str | None]
    """Its splits; None stands for all of a dataset that has none."""
    open: Callable[[str | None], RecordSource]
    """Opens one of them."""
    sliced: bool = False
    """Whether parts and sums of splits can be asked for as well, such as train[:10%]."""


def open_source(options: DatasetOptions) -> RecordSource:
    """Open a dataset.

    What `datasets` and token caches have in Arrow or tokens is read in place; files and named
    datasets become a table, or are read in sequence where `options.streaming`.

    Raises:
        UserError: nothing there, no such split or column, unreadable, or no text at all.
    """
    with _quiet_datasets():
        found = _find(options)
        return found.open(_choose_split(found, options))


def open_training_and_evaluation(
    training: Sequence[DatasetOptions], evaluation: DatasetOptions | None, held_out_share: float
) -> tuple[list[Opened], Opened | None]:
    """Open the datasets of training and that of evaluation, and keep them apart.

    Evaluation reads the very dataset of a training source where dataset (the path, however
    written), dataset_name, data_dir and data_files are the same. Then its split is the one it asks
    for, else "validation", else, where there is none, the split of that training source. Where that
    is what the training source reads, evaluation takes the documents whose hash is below the
    share and training the others; both get the same object. All training sources that read this
    split of this dataset are divided, and no others. Different splits are never divided: whoever
    asks for overlapping ones (train and train[:1%]) gets them.

    Args:
        training: datasets of the mixture.
        evaluation: dataset of the evaluation, if there is one.
        held_out_share: share of the documents that evaluation takes, 0 to 1.

    Raises:
        UserError: as `open_source`.
    """
    with _quiet_datasets():
        found = [_find(options) for options in training]
        splits = list(map(_choose_split, found, training))
        sources = [one.open(split) for one, split in zip(found, splits, strict=True)]
        if evaluation is None:
            return [Opened(source, None) for source in sources], None
        target = _find(evaluation)
        same = [i for i, one in enumerate(training) if _data_key(one) == _data_key(evaluation)]
        if same and not evaluation.dataset_split and "validation" not in target.splits:
            split = splits[same[0]]
        else:
            split = _choose_split(target, evaluation)
        divided = [i for i in same if splits[i] == split]
        opened = [
            Opened(source, HeldOut(held_out_share, "training") if i in divided else None)
            for i, source in enumerate(sources)
        ]
        if divided:
            return opened, Opened(sources[divided[0]], HeldOut(held_out_share, "evaluation"))
        return opened, Opened(target.open(split), None)


def _data_key(options: DatasetOptions) -> tuple[str | None, ...]:
    """What two sections have in common that mean the same dataset, whichever split of it."""
    name = options.dataset
    is_path = Path(name).exists() or files.GLOB_CHARACTERS.intersection(name)
    place = os.path.realpath(name) if is_path else name
    return place, options.dataset_name, options.data_dir, *options.patterns


def _choose_split(found: _Found, options: DatasetOptions) -> str | None:
    """The split to read; a source without splits (None) is all of it, and calls itself train."""
    asked = options.dataset_split
    if None in found.splits and asked in (None, "train"):
        return None
    chosen = asked or DEFAULT_SPLITS[options.section]
    if chosen in found.splits or found.sliced:
        return chosen
    names = ", ".join(split or "train (all of it)" for split in found.splits)
    raise UserError(
        f"no split {chosen!r}; there are: {names}",
        where=options.where,
        remedy=f"name one of these with {options.section}.dataset_split",
    )


def _find(options: DatasetOptions) -> _Found:
    path = Path(options.dataset)
    if options.dataset == corpus.CORPUS:
        _refuse(options, "dataset_name", "data_dir", "data_files")
        return _Found(corpus.SPLITS, partial(_open_corpus, options))
    if (path / MANIFEST).is_file() or (path / UNFINISHED).is_file():
        _refuse(options, "dataset_name", "data_dir", "data_files")
        return _Found([None], lambda split: path)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        _refuse(options, "dataset_name", "data_dir", "data_files")
        return _find_saved(options)
    if path.exists() or files.GLOB_CHARACTERS.intersection(options.dataset):
        return _find_files(options)
    return _find_named(options)


def _refuse(options: DatasetOptions, *names: str) -> None:
    given = [f"{options.section}.{name}" for name in names if getattr(options, name) is not None]
    if given:
        raise UserError(
            f"{', '.join(given)} cannot narrow this kind of dataset",
            where=options.where,
            remedy=f"leave {' and '.join(given)} out",
            exit_code=2,
        )


def _open_corpus(options: DatasetOptions, split: str | None) -> Table:
    return _build_table(options, Dataset.from_dict({"text": corpus.read_corpus(str(split))}))


def _find_saved(options: DatasetOptions) -> _Found:
    with _reported(options, "save_to_disk has not written it, or not all of it", "write it again"):
        saved = datasets.load_from_disk(options.dataset)
    if isinstance(saved, DatasetDict):
        return _Found(list(map(str, saved)), lambda split: _build_table(options, saved[str(split)]))
    return _Found([None], lambda split: _build_table(options, saved))


def _find_files(options: DatasetOptions) -> _Found:
    path = Path(options.dataset)
    narrowing = ("dataset_name",) if path.is_dir() else ("dataset_name", "data_dir", "data_files")
    _refuse(options, *narrowing)
    found = files.find_files(options.dataset, options.data_dir, options.patterns)
    # a file that was named is meant, whatever split its name speaks of
    alone: dict[str | None, list[Path]] = {None: found}
    groups = alone if path.is_file() else files.group_files_by_split(found, options.where)
    return _Found(list(groups), lambda split: _open_files(options, groups[split]))


def _open_files(options: DatasetOptions, found: Sequence[Path]) -> RecordSource:
    _check_document_count(options, found)
    names = [str(file) for file in found]
    column, max_bytes = options.text_column, options.max_document_bytes
    if options.streaming:
        return FileShards(options.dataset, names, text_column=column, max_bytes=max_bytes)
    table = copy_files_to_table(
        names, name=options.dataset, text_column=column, max_bytes=max_bytes
    )
    return _checked(table, options)


def _check_document_count(options: DatasetOptions, found: Sequence[Path]) -> None:
    """A book of everything in one file would be a single document, however many it means."""
    if len(found) > 1 or files.file_format(found[0]) != files.TEXT:
        return
    size, limit = found[0].stat().st_size, options.max_document_bytes
    if size > limit:
        raise UserError(
            f"a text file is one document, and this one has {size} bytes, more than "
            f"training.max_document_bytes = {limit}",
            where=str(found[0]),
            remedy='write one document per line of a .jsonl file: {"text": "..."}',
        )


def _find_named(options: DatasetOptions) -> _Found:
    with _named(options):
        builder = datasets.load_dataset_builder(
            options.dataset,
            options.dataset_name,
            data_dir=options.data_dir,
            data_files=options.patterns or None,
        )
    splits = list(map(str, builder.config.data_files or builder.info.splits or ()))
    return _Found(splits, partial(_open_named, options, builder), sliced=True)


def _open_named(
    options: DatasetOptions, builder: datasets.DatasetBuilder, split: str | None
) -> RecordSource:
    column, max_bytes = options.text_column, options.max_document_bytes
    if options.streaming and (urls := readable_split_urls(builder, str(split))):
        return FileShards(options.dataset, urls, text_column=column, max_bytes=max_bytes)
    with _named(options):
        if options.streaming:
            stream = builder.as_streaming_dataset(str(split))
            assert isinstance(stream, IterableDataset)
            return NamedShards(options.dataset, stream, text_column=column, max_bytes=max_bytes)
        builder.download_and_prepare()
        dataset = builder.as_dataset(str(split))
    assert isinstance(dataset, Dataset)
    return _build_table(options, dataset)


def _named(options: DatasetOptions) -> AbstractContextManager[None]:
    """The library reports unknown names, configurations and splits by exceptions."""
    return _reported(
        options,
        "neither a local path nor a dataset that opens",
        f"check the path or name, {options.section}.dataset_name and "
        f"{options.section}.dataset_split",
    )


@contextmanager
def _reported(options: DatasetOptions, what: str, remedy: str) -> Iterator[None]:
    """Turn what the library has to say into an error for users."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
        # this one says no more than that there is another
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        raise UserError(
            f"{what}: {str(cause).strip()}", where=options.where, remedy=remedy
        ) from error


def _build_table(options: DatasetOptions, dataset: Dataset) -> Table:
    column = choose_record_column(dataset.features, options.text_column, options.where)
    table = dataset.select_columns([column])
    return _checked(
        Table(options.dataset, table, column, max_bytes=options.max_document_bytes), options
    )


def _checked(table: Table, options: DatasetOptions) -> Table:
    """The table, if it has a document at all."""
    damaged: Skipped | None = None
    for index in range(len(table)):
        record = table[index]
        if not isinstance(record, Skipped):
            return table
        if damaged is None and record.why == "damaged":
            damaged = record
    if damaged is not None:
        only = f"none of its {len(table)} documents can be read"
        raise UserError(
            damaged.what,
            where=damaged.where,
            remedy=f"mend the file, convert it or leave it out; {only}",
        )
    raise UserError(
        f"none of its {len(table)} documents has text" if len(table) else "is empty",
        where=options.where,
        remedy="give a dataset with at least as many documents as a step has rows",
    )


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
