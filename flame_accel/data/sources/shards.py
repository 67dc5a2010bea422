"""Sequences of records that are read from any place on: files of ours, or a dataset of a Hub.

What is in a file is ``readers``' part; which files there are is decided by who opens them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

from datasets import DatasetBuilder, IterableDataset
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.text.text import Text

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources import file_access as access
from flame_accel.data.sources import files
from flame_accel.data.sources.file_readers import END, read_records
from flame_accel.data.sources.record_parsing import Wanted, record_of

NUM_REQUESTS = 16
"""Sizes of remote files that are asked for at once."""


class FileShards:
    """Files as shards.

    Args:
        name: what the user calls them.
        files: paths or URLs, at least one, in the order of the shards.
        text_column: column that holds texts or conversations; None: text, content or messages.
        max_bytes: longer records are damaged.
    """

    def __init__(
        self, name: str, files: Sequence[str], *, text_column: str | None, max_bytes: int
    ) -> None:
        self.name = name
        self._files = list(files)
        self._text_column = text_column
        self._max_bytes = max_bytes
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._files)

    def read(self, shard: int, place: int, /) -> Iterator[tuple[Record | Skipped, int]]:
        """Records of a file from a place on; see `read_records`."""
        file, column, max_bytes = self._files[shard], self._text_column, self._max_bytes
        return read_records(file, place, text_column=column, max_bytes=max_bytes)

    @property
    def fingerprint(self) -> str:
        """Hash of the files' sizes, of their names below the folder of all, and of the column."""
        if self._fingerprint is None:
            paths = [file.split("/") for file in self._files]
            levels = zip(*(path[:-1] for path in paths), strict=False)
            num_shared = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
            names = ["/".join(path[num_shared:]) for path in paths]
            with ThreadPoolExecutor(NUM_REQUESTS) as threads:
                sizes = list(threads.map(access.size_of, self._files))
            self._fingerprint = _hash([self._text_column, names, sizes])
        return self._fingerprint


class NamedShards:
    """Shards of a dataset in a format that ``datasets`` reads and we do not.

    Args:
        name: what the user calls it.
        dataset: as it was loaded, with streaming.
        text_column: column that holds texts or conversations; None: text, content or messages.
        max_bytes: longer records are damaged.
    """

    def __init__(
        self, name: str, dataset: IterableDataset, *, text_column: str | None, max_bytes: int
    ) -> None:
        self.name = name
        self._dataset = dataset
        self._wanted = Wanted(text_column, max_bytes)

    def __len__(self) -> int:
        return self._dataset.num_shards

    def read(self, shard: int, place: int, /) -> Iterator[tuple[Record | Skipped, int]]:
        """Records of a shard from a place on: the number of those before, which are read as well.

        Raises:
            UserError: the first record has no such column, or one of another type.
        """
        if place >= END:
            return
        where = f"{self.name}, shard {shard}"
        dataset = self._dataset.shard(num_shards=len(self), index=shard)
        if (names := dataset.column_names) is not None:
            column = files.choose_text_column(names, self._wanted.column, where)
            dataset = dataset.select_columns([column])
        try:
            # plain iteration would give a loader's worker only its share of the shard
            for batch in dataset.skip(place).iter(batch_size=1):
                columns = {name: values[0] for name, values in batch.items()}
                record = record_of(columns, self._wanted, f"{where}, row {place}", place == 0)
                place += 1
                yield record, place
        except UserError:
            raise
        # each format has exceptions of its own; remote reads were tried again by the library
        except Exception as error:
            yield Skipped("damaged", f"{where}, row {place}", access.describe(error)), END

    @property
    def fingerprint(self) -> str:
        """Hash of what the dataset says of itself, and of the column."""
        info = self._dataset.info
        features = str(self._dataset.features)
        about = [info.builder_name, info.dataset_name, info.config_name, str(info.version)]
        split = str(self._dataset.split)
        return _hash([self._wanted.column, about, split, features, len(self)])


def readable_split_urls(builder: DatasetBuilder, split: str) -> list[str] | None:
    """Files of a split of a dataset that `FileShards` reads as ``datasets`` would.

    Args:
        builder: of ``datasets.load_dataset_builder``.
        split: name of a split.

    Returns:
        Paths or URLs; None where there are none of that split, in formats that we do not read, or
        with options that we do not know (a field of JSON, rows of Parquet by filter, text by line).
    """
    config: Any = builder.config
    if isinstance(builder, Json):
        kind, plain = files.JSON, config.field is None and config.encoding == "utf-8"
    elif isinstance(builder, Parquet):
        kind, plain = files.PARQUET, config.filters is None
    elif isinstance(builder, Text):
        kind, plain = files.TEXT, config.sample_by == "document" and config.encoding == "utf-8"
    else:
        return None
    splits = {str(name): list(map(str, urls)) for name, urls in (config.data_files or {}).items()}
    urls = splits.get(split, [])
    return urls if urls and plain and all(files.file_format(url) == kind for url in urls) else None


def _hash(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
