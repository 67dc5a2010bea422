"""Copies the records of files into an Arrow table, once, in the cache of the `datasets` library.

The library locks its cache, so that of several processes one makes the copy. The table itself is
in `table`.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources.file_readers import READER_VERSION, read_records
from flame_accel.data.sources.record_parsing import RecordColumn
from flame_accel.data.sources.table import CACHE_FEATURES, RowKind, Table
from flame_accel.files import describe_files, describe_first_damage, write_json_atomically
from flame_accel.json_text import parse_json_text

BATCH_ROWS = 1000
"""Most records that are written to the cache at once."""
BATCH_CHARACTERS = 2**24
"""Most characters that are written at once: memory stays flat, however long the records are."""

MAX_VERIFIED_BYTES = 256_000_000
"""A copy of at most this size is read and verified completely when it is opened."""
CHECKSUMS = "flame_accel_checksums.json"
"""Sizes and checksums of the files of a copy, next to them."""

logger = logging.getLogger(__name__)


def copy_files_to_cached_table(
    files: Sequence[str], record_column: RecordColumn, *, name: str
) -> Table:
    """Copy the records of files into a table of the `datasets` cache, once, and map it into memory.

    The copy is keyed by the names, sizes and times of the files and by how they are read. Damaged
    and empty records are rows as well, so that indices are the same whether they are skipped or
    stop the run.

    Args:
        files: local files, in their order.
        record_column: which column of the records is read.
        name: how messages name the data.

    Raises:
        UserError: the files have another form or no records, or the copy cannot be written.
    """
    try:
        builder = _RecordsBuilder(
            dataset_name="flame_accel_records",
            config_id=f"records-{_table_cache_key(files, record_column)}",
            files=tuple(files),
            record_column=record_column,
        )
        builder.download_and_prepare()
    except (DatasetGenerationError, OSError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, UserError):
            raise cause from None
        # readers report damaged files as records, so this is no error of a file
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot be copied into the cache of datasets: {cause}",
            where=name,
            remedy="make room there, name another folder with the environment variable "
            "HF_DATASETS_CACHE, or add --training.streaming",
        ) from error
    _record_or_compare_checksums(Path(builder.cache_dir), name)
    dataset = builder.as_dataset("train")
    assert isinstance(dataset, Dataset)
    return Table(name, dataset, "value", max_bytes=record_column.max_bytes)


def _record_or_compare_checksums(folder: Path, name: str) -> None:
    """Checks a copy against the checksums recorded when it was first used, since Arrow has none.

    Of a copy of more than `MAX_VERIFIED_BYTES` only the sizes are compared.

    Raises:
        UserError: The copy is not what it was.
    """
    path = folder / CHECKSUMS
    try:
        recorded = parse_json_text(path.read_bytes())
        small = sum(file["size"] for file in recorded.values()) <= MAX_VERIFIED_BYTES
        damage = describe_first_damage(folder, recorded, compare_checksums=small)
    except FileNotFoundError:
        files = {file: each for file, each in describe_files(folder).items() if ".arrow" in file}
        # a cache that cannot be written to serves without them
        with suppress(OSError):
            write_json_atomically(path, files)
        return
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        damage = f"{CHECKSUMS} cannot be read ({error})"
    if damage is not None:
        raise UserError(
            f"its copy in the cache of datasets is damaged: {damage}",
            where=name,
            remedy=f"delete {folder}: the copy is made again",
        )


def _table_cache_key(files: Sequence[str], record_column: RecordColumn) -> str:
    """Hash of the names, sizes and times of the files and of how they are read."""
    stats = [(str(Path(file).resolve()), Path(file).stat()) for file in files]
    # ctime changes with the permissions as well, and a file may be unreadable for lack of them
    stamps = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]
    key = json.dumps([READER_VERSION, str(CACHE_FEATURES), *record_column, stamps])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclass
class _RecordsConfig(datasets.BuilderConfig):
    files: tuple[str, ...] = ()
    record_column: RecordColumn = field(default_factory=RecordColumn)


class _CachedRow(NamedTuple):
    """A record as `CACHE_FEATURES` holds it."""

    kind: int
    """A `RowKind`."""
    value: str
    """The text, the conversation as JSON, or why the record was skipped."""
    where: str | None
    """Place of a skipped record."""


class _RecordsBuilder(datasets.ArrowBasedBuilder):
    """Makes the `datasets` library write the copy to its cache, and hold its lock meanwhile."""

    BUILDER_CONFIG_CLASS = _RecordsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=CACHE_FEATURES)

    def _split_generators(self, dl_manager: object) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train", gen_kwargs={})]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        config = self.config
        assert isinstance(config, _RecordsConfig)
        rows: list[_CachedRow] = []
        number = size = 0
        logger.info("copying the data into a table (once): %s", self.cache_dir)
        for file in config.files:
            for record, _ in read_records(file, 0, config.record_column):
                rows.append(_convert_to_cached_row(record))
                size += len(rows[-1].value)
                if len(rows) == BATCH_ROWS or size >= BATCH_CHARACTERS:
                    yield number, _to_arrow_table(rows)
                    number += 1
                    size = 0
                    rows = []
        if rows:
            yield number, _to_arrow_table(rows)
        elif not number:
            raise UserError(
                "no records found",
                where=", ".join(config.files[:3]),
                remedy="give a dataset with at least as many documents as a step has rows",
            )


def _convert_to_cached_row(record: Record | Skipped) -> _CachedRow:
    if isinstance(record, Skipped):
        kind = RowKind.EMPTY if record.why == "empty" else RowKind.DAMAGED
        return _CachedRow(kind, record.what, record.where)
    if isinstance(record, str):
        return _CachedRow(RowKind.TEXT, record, None)
    return _CachedRow(RowKind.CONVERSATION, json.dumps(record), None)


def _to_arrow_table(rows: Sequence[_CachedRow]) -> pa.Table:
    columns = dict(zip(CACHE_FEATURES, zip(*rows, strict=True), strict=True))
    return pa.table(columns, schema=CACHE_FEATURES.arrow_schema)
