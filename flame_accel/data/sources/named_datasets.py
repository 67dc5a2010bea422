"""Datasets that the `datasets` library loads by name: those of the Hub, and its own formats.

With streaming, their files are read by `file_shards` where the library would read them in the same
way, else by the library.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import datasets
from datasets import Dataset, DatasetBuilder, IterableDataset
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.text.text import Text

from flame_accel.config.errors import UserError
from flame_accel.data.documents import PositionedRecord, Skipped
from flame_accel.data.encoded_datasets import SequentialDataset
from flame_accel.data.sources.file_access import describe_error_in_one_line
from flame_accel.data.sources.file_formats import JSON, PARQUET, TEXT, format_by_suffix_else_text
from flame_accel.data.sources.file_readers import END
from flame_accel.data.sources.file_shards import FileShards
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.sources.hf_datasets import convert_datasets_errors
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.sources.record_hashes import hash_list_as_json
from flame_accel.data.sources.record_parsing import RecordColumn, choose_text_column, extract_record
from flame_accel.data.sources.table import Table, build_table_and_check_any_readable
from flame_accel.data.tokens.encoder import Encoder


class NamedDataset:
    """A name for `datasets.load_dataset`: any name that `opening.DATASET_KINDS` do not recognize.

    Raises:
        UserError: the library does not know it.
    """

    accepts_hf_split_slices = True
    """Slices and sums of splits are splits as well, such as train[:10%]."""

    def __init__(self, options: DatasetOptions) -> None:
        self._options = options
        with self._convert_unknown_name_errors():
            self._builder = datasets.load_dataset_builder(
                options.dataset,
                options.dataset_name,
                data_dir=options.data_dir,
                data_files=options.data_files_list or None,
            )

    @property
    def splits(self) -> Sequence[str | None]:
        """Names of the splits, without slices."""
        builder = self._builder
        return list(map(str, builder.config.data_files or builder.info.splits or ()))

    def open_split(self, split: str | None) -> "Table | FileShards | NamedShards":
        """A split: its table, or with `options.streaming` its shards.

        Raises:
            UserError: no such split, or no text.
        """
        options, builder = self._options, self._builder
        if options.streaming and (urls := directly_readable_split_urls(builder, str(split))):
            return FileShards(options.dataset, urls, options.record_column)
        with self._convert_unknown_name_errors():
            if options.streaming:
                stream = builder.as_streaming_dataset(str(split))
                assert isinstance(stream, IterableDataset)
                return NamedShards(options.dataset, stream, options.record_column)
            builder.download_and_prepare()
            dataset = builder.as_dataset(str(split))
        assert isinstance(dataset, Dataset)
        return build_table_and_check_any_readable(options, dataset)

    def _convert_unknown_name_errors(self) -> AbstractContextManager[None]:
        """The library reports unknown names, configurations and splits by exceptions."""
        section = self._options.section
        return convert_datasets_errors(
            self._options,
            "neither a local path nor a dataset that opens",
            f"check the path or name, {section}.dataset_name and {section}.dataset_split",
        )


class NamedShards:
    """Shards of a dataset in a format that only the `datasets` library reads.

    Args:
        name: how messages name the data.
        dataset: as the library loads it with streaming.
        record_column: which column of the records is read.
    """

    def __init__(self, name: str, dataset: IterableDataset, record_column: RecordColumn) -> None:
        self.name = name
        self._dataset = dataset
        self._record_column = record_column

    def __len__(self) -> int:
        return self._dataset.num_shards

    def read(self, shard: int, position: int, /) -> Iterator[PositionedRecord]:
        """Records of a shard from a position: the number of records to read and drop before it.

        Raises:
            UserError: the first record has no such column, or one of another type.
        """
        if position >= END:
            return
        where = f"{self.name}, shard {shard}"
        dataset = self._dataset.shard(num_shards=len(self), index=shard)
        if (names := dataset.column_names) is not None:
            column = choose_text_column(names, self._record_column.name, where)
            dataset = dataset.select_columns([column])
        try:
            # plain iteration would give each worker of a loader only its share of the shard
            for batch in dataset.skip(position).iter(batch_size=1):
                columns = {name: values[0] for name, values in batch.items()}
                record = extract_record(
                    columns,
                    self._record_column,
                    f"{where}, row {position}",
                    raise_for_wrong_column=position == 0,
                )
                position += 1
                yield PositionedRecord(record, position)
        except UserError:
            raise
        # each format has its own exceptions; the library has retried remote reads already
        except Exception as error:
            what = describe_error_in_one_line(error)
            yield PositionedRecord(Skipped("damaged", f"{where}, row {position}", what), END)

    @property
    def quick_content_fingerprint(self) -> str:
        """Hash of what the dataset states about itself, and of the column."""
        info = self._dataset.info
        features = str(self._dataset.features)
        about = [info.builder_name, info.dataset_name, info.config_name, str(info.version)]
        split = str(self._dataset.split)
        return hash_list_as_json([self._record_column.name, about, split, features, len(self)])

    def open_encoded(self, encoder: Encoder, held_out: HeldOut | None) -> SequentialDataset:
        """The documents of these shards."""
        return SequentialDataset(self, encoder, held_out)


def directly_readable_split_urls(builder: DatasetBuilder, split: str) -> list[str] | None:
    """Files of a split that `FileShards` reads exactly as the `datasets` library would.

    Args:
        builder: from `datasets.load_dataset_builder`.
        split: name of a split.

    Returns:
        Paths or URLs; None if the split has no files, or they have a format or options that we do
        not read (a field of JSON, filtered rows of Parquet, text by line).
    """
    config: Any = builder.config
    if isinstance(builder, Json):
        kind, plain = JSON, config.field is None and config.encoding == "utf-8"
    elif isinstance(builder, Parquet):
        kind, plain = PARQUET, config.filters is None
    elif isinstance(builder, Text):
        kind, plain = TEXT, config.sample_by == "document" and config.encoding == "utf-8"
    else:
        return None
    splits = {str(name): list(map(str, urls)) for name, urls in (config.data_files or {}).items()}
    urls = splits.get(split, [])
    plain = plain and all(format_by_suffix_else_text(url) == kind for url in urls)
    return urls if urls and plain else None
