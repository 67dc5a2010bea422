"""Records by index: an Arrow table of the `datasets` library, mapped into memory.

All processes of a machine share it. Records of files are copied into such a table by `file_table`.
"""

from enum import IntEnum
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Json, LargeList, List, Value

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Record, Skipped, first_is_conversation
from flame_accel.data.encoded_datasets import EncodedTable, IndexedDataset, restrict_encode_to_side
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.sources.record_hashes import fingerprint_from_sample, record_hash_or_zero
from flame_accel.data.sources.record_parsing import (
    MAX_DOCUMENT_BYTES,
    TEXT_COLUMN_FLAG,
    RecordColumn,
    choose_text_column,
    extract_record,
)
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.json_text import parse_json_text

CACHE_FEATURES = Features(
    {"kind": Value("int8"), "value": Value("large_string"), "where": Value("string")}
)
"""Columns of a table that `file_table` writes."""


class RowKind(IntEnum):
    """What a row of a copy of files holds in its column "value"."""

    TEXT = 0
    """The text."""
    CONVERSATION = 1
    """The messages as JSON."""
    EMPTY = 2
    """What is missing; the column "where" says where."""
    DAMAGED = 3
    """What is wrong; the column "where" says where."""


class Table:
    """Records by index.

    Args:
        name: how messages name the data.
        dataset: with a column of texts or conversations, or from `copy_files_to_cached_table`.
        column: the column of the records; "value" for a table of `copy_files_to_cached_table`.
        max_bytes: longer records count as damaged.
    """

    def __init__(
        self, name: str, dataset: Dataset, column: str, *, max_bytes: int = MAX_DOCUMENT_BYTES
    ) -> None:
        self.name = name
        self._dataset = dataset
        self._column = column
        self._record_column = RecordColumn(column, max_bytes)
        # an Arrow column returns a value in a tenth of the time of dataset[i]
        self._values: pa.ChunkedArray = dataset.data.column(column)
        self._rows = None if dataset._indices is None else dataset._indices.column(0)
        # only a copy of files has them
        cached = dataset.features == CACHE_FEATURES
        self._kinds: pa.ChunkedArray | None = dataset.data.column("kind") if cached else None
        self._is_text = isinstance(dataset.features[column], Value)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record | Skipped:
        row = index if self._rows is None else self._rows[index].as_py()
        if self._kinds is not None:
            return self._read_cached_record(row, self._kinds[row].as_py())
        value: object
        try:
            if self._is_text:
                value = self._values[row].as_py()
            else:
                # messages have several Arrow forms, which the library decodes
                value = self._dataset[index][self._column]
        except UnicodeDecodeError as error:
            value = error
        where = f"{self.name}, row {index}"
        return extract_record(
            {self._column: value}, self._record_column, where, raise_for_wrong_column=False
        )

    def open_encoded(self, encoder: Encoder, held_out: HeldOut | None) -> IndexedDataset:
        """The documents of this table."""
        records = map(self.__getitem__, range(len(self)))
        documents = EncodedTable(self, restrict_encode_to_side(encoder, held_out))
        return IndexedDataset(
            documents,
            held_out,
            conversations=first_is_conversation(records),
            storage_description="a table",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # a dataset is pickled as the path of its file, a column with all its content
        rebuild = partial(Table, max_bytes=self._record_column.max_bytes)
        return rebuild, (self.name, self._dataset, self._column)

    @property
    def sampled_records_fingerprint(self) -> str:
        """Hash of the number of records and of evenly spread ones; the same wherever they lie."""
        return fingerprint_from_sample(len(self), lambda i: record_hash_or_zero(self[i]))

    def _read_cached_record(self, row: int, kind: int) -> Record | Skipped:
        """A record that `copy_files_to_cached_table` has checked and copied."""
        value = self._values[row].as_py()
        if kind == RowKind.TEXT:
            return value
        if kind == RowKind.CONVERSATION:
            return parse_json_text(value)
        where = self._dataset.data.column("where")[row].as_py()
        return Skipped("empty" if kind == RowKind.EMPTY else "damaged", where, value)


def build_table_and_check_any_readable(options: DatasetOptions, dataset: Dataset) -> Table:
    """The table of a dataset of the library, reduced to the column of its records.

    Raises:
        UserError: no such column, or no text in it.
    """
    column = choose_and_check_text_column(
        dataset.features, options.text_column, options.error_location
    )
    max_bytes = options.max_document_bytes
    table = Table(options.dataset, dataset.select_columns([column]), column, max_bytes=max_bytes)
    check_any_record_readable(table, options.error_location)
    return table


def check_any_record_readable(table: Table, error_location: str) -> None:
    """Check that at least one record of the table can be read.

    Raises:
        UserError: there is none; names the first damaged record.
    """
    damaged: Skipped | None = None
    for index in range(len(table)):
        record = table[index]
        if not isinstance(record, Skipped):
            return
        if damaged is None and record.why == "damaged":
            damaged = record
    if damaged is not None:
        only = f"none of its {len(table)} documents can be read"
        raise UserError(
            damaged.what,
            where=damaged.where,
            remedy=f"fix the file, convert it or leave it out; {only}",
        )
    raise UserError(
        f"none of its {len(table)} documents has text" if len(table) else "is empty",
        where=error_location,
        remedy="give a dataset with at least as many documents as a step has rows",
    )


def choose_and_check_text_column(
    features: Features, text_column: str | None, error_location: str
) -> str:
    """The column of a dataset that holds texts or conversations.

    Raises:
        UserError: no column of that name, or it holds something else.
    """
    column = choose_text_column(features, text_column, error_location)
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
            where=error_location,
            remedy=f"name the column that holds the text with {TEXT_COLUMN_FLAG}",
        )
    return column
