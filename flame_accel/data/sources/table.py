"""Texts and conversations by index: an Arrow table of ``datasets``, mapped into memory.

All processes of a machine share it. Records of files are copied into such a table once, into the
cache of ``datasets``, which locks it, so that of several processes one builds it. Which records
files hold is the readers' part, which table is meant is ``opening``'s. No tokens here.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, Features, Json, LargeList, List, Value
from datasets.exceptions import DatasetGenerationError

from flame_accel.config import TrainingConfig, UserError
from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources.file_readers import read_records
from flame_accel.data.sources.files import READER_VERSION, TEXT_COLUMN_FLAG, choose_text_column
from flame_accel.data.sources.record_hashes import record_hash, sample_fingerprint
from flame_accel.data.sources.record_parsing import Wanted, record_of

logger = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES = TrainingConfig().max_document_bytes
"""What `training.max_document_bytes` is when nobody says otherwise."""
BATCH_ROWS = 1000
"""So many records are written to the cache at once ..."""
BATCH_CHARACTERS = 2**24
"""... or as many as have so many characters: memory stays flat, however long they are."""
CACHE_FEATURES = Features(
    {"kind": Value("int8"), "value": Value("large_string"), "where": Value("string")}
)


class Kind(IntEnum):
    """What a row of the cache holds in its column "value"."""

    TEXT = 0
    """The text."""
    CONVERSATION = 1
    """The messages as JSON."""
    EMPTY = 2
    """What is missing; the column "where" has the place."""
    DAMAGED = 3
    """What is wrong; the column "where" has the place."""


class Table:
    """Records by index.

    Args:
        name: what the user calls it.
        dataset: with a column of texts or conversations, or written by `copy_files_to_table`.
        column: the column; "value" of the cache.
        max_bytes: longer ones are damaged.
    """

    def __init__(
        self, name: str, dataset: Dataset, column: str, *, max_bytes: int = MAX_DOCUMENT_BYTES
    ) -> None:
        self.name = name
        self._dataset = dataset
        self._column = column
        self._wanted = Wanted(column, max_bytes)
        # an Arrow column gives a value in a tenth of the time that dataset[i] takes
        self._values: pa.ChunkedArray = dataset.data.column(column)
        self._rows = None if dataset._indices is None else dataset._indices.column(0)
        # of the cache only
        cached = dataset.features == CACHE_FEATURES
        self._kinds: pa.ChunkedArray | None = dataset.data.column("kind") if cached else None
        self._is_text = isinstance(dataset.features[column], Value)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record | Skipped:
        row = index if self._rows is None else self._rows[index].as_py()
        if self._kinds is not None:
            return self._copy(row, self._kinds[row].as_py())
        value: object
        try:
            if self._is_text:
                value = self._values[row].as_py()
            else:
                # messages come in several forms, which the library knows
                value = self._dataset[index][self._column]
        except UnicodeDecodeError as error:
            value = error
        where = f"{self.name}, row {index}"
        return record_of({self._column: value}, self._wanted, where, first=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # a dataset is pickled as the path of its file, a column with all of its content
        rebuild = partial(Table, max_bytes=self._wanted.max_bytes)
        return rebuild, (self.name, self._dataset, self._column)

    @property
    def fingerprint(self) -> str:
        """Hash of the number of documents and of evenly spread ones; wherever the data lies."""
        return sample_fingerprint(len(self), self._hash)

    def _hash(self, index: int) -> int:
        record = self[index]
        return 0 if isinstance(record, Skipped) else record_hash(record)

    def _copy(self, row: int, kind: int) -> Record | Skipped:
        """What a reader gave: checked already."""
        value = self._values[row].as_py()
        if kind == Kind.TEXT:
            return value
        if kind == Kind.CONVERSATION:
            return json.loads(value)
        where = self._dataset.data.column("where")[row].as_py()
        return Skipped("empty" if kind == Kind.EMPTY else "damaged", where, value)


def choose_record_column(features: Features, text_column: str | None, where: str) -> str:
    """The column of a dataset that holds texts or conversations.

    Raises:
        UserError: there is none of that name, or it holds something else.
    """
    column = choose_text_column(features, text_column, where)
    feature = features[column]
    if isinstance(feature, Value):
        holds_records = feature.dtype in ("string", "large_string")
    else:
        message = feature.feature if isinstance(feature, List | LargeList) else None
        named = isinstance(message, dict) and "role" in message
        holds_records = named or isinstance(message, Json)
    if not holds_records:
        raise UserError(
            f"column {column!r} holds {feature}, not text",
            where=where,
            remedy=f"name the column that holds the text with {TEXT_COLUMN_FLAG}",
        )
    return column


def copy_files_to_table(
    files: Sequence[str],
    *,
    name: str,
    text_column: str | None = None,
    max_bytes: int = MAX_DOCUMENT_BYTES,
) -> Table:
    """The records of files as a table, copied once and then mapped.

    The copy is keyed by the names, sizes and times of the files and by how they are read. Records
    that are damaged or empty are rows as well, so that indices are the same for whoever passes
    them over and whoever stops at them.

    Args:
        files: local files, in their order.
        name: what the user calls them.
        text_column: column of the records; None takes text, else content, else messages.
        max_bytes: longer texts are damaged.

    Raises:
        UserError: the files are of another form, or hold no record at all.
    """
    stats = [(str(Path(file).resolve()), Path(file).stat()) for file in files]
    # the second time changes with the rights as well, for want of which a file may be damaged
    stamps = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]
    key = json.dumps([READER_VERSION, str(CACHE_FEATURES), text_column, max_bytes, stamps])
    try:
        builder = _RecordsBuilder(
            dataset_name="flame_accel_records",
            config_id=f"records-{hashlib.sha256(key.encode()).hexdigest()[:16]}",
            files=tuple(files),
            text_column=text_column,
            max_bytes=max_bytes,
        )
        builder.download_and_prepare()
    except (DatasetGenerationError, OSError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, UserError):
            raise cause from None
        # readers keep what is wrong with files to themselves
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot be copied into the cache of datasets: {cause}",
            where=name,
            remedy="make room there, name another folder with the environment variable "
            "HF_DATASETS_CACHE, or add --training.streaming",
        ) from error
    dataset = builder.as_dataset("train")
    assert isinstance(dataset, Dataset)
    return Table(name, dataset, "value", max_bytes=max_bytes)


@dataclass
class _RecordsConfig(datasets.BuilderConfig):
    files: tuple[str, ...] = ()
    text_column: str | None = None
    max_bytes: int = MAX_DOCUMENT_BYTES


class _RecordsBuilder(datasets.ArrowBasedBuilder):
    """How ``datasets`` is told to make a cache, and to hold its lock meanwhile."""

    BUILDER_CONFIG_CLASS = _RecordsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=CACHE_FEATURES)

    def _split_generators(self, dl_manager: object) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train", gen_kwargs={})]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        config = self.config
        assert isinstance(config, _RecordsConfig)
        rows: list[tuple[int, str, str | None]] = []
        number = size = 0
        logger.info("copying the data into a table, once: %s", self.cache_dir)
        for file in config.files:
            for record, _ in read_records(
                file, 0, text_column=config.text_column, max_bytes=config.max_bytes
            ):
                rows.append(_row(record))
                size += len(rows[-1][1])
                if len(rows) == BATCH_ROWS or size >= BATCH_CHARACTERS:
                    yield number, _arrow(rows)
                    number += 1
                    size = 0
                    rows = []
        if rows:
            yield number, _arrow(rows)
        elif not number:
            raise UserError(
                "there are no records",
                where=", ".join(config.files[:3]),
                remedy="give a dataset with at least as many documents as a step has rows",
            )


def _row(record: Record | Skipped) -> tuple[int, str, str | None]:
    if isinstance(record, Skipped):
        kind = Kind.EMPTY if record.why == "empty" else Kind.DAMAGED
        return kind, record.what, record.where
    if isinstance(record, str):
        return Kind.TEXT, record, None
    return Kind.CONVERSATION, json.dumps(record), None


def _arrow(rows: Sequence[tuple[int, str, str | None]]) -> pa.Table:
    columns = dict(zip(CACHE_FEATURES, zip(*rows, strict=True), strict=True))
    return pa.table(columns, schema=CACHE_FEATURES.arrow_schema)
