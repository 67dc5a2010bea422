"""Files that are read in sequence, each from any position: one shard per file.

How a file is read is in `file_readers`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

from flame_accel.data.documents import PositionedRecord
from flame_accel.data.encoded_datasets import SequentialDataset
from flame_accel.data.sources.file_access import stored_size_or_none_if_missing
from flame_accel.data.sources.file_readers import read_records
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.sources.record_hashes import hash_list_as_json
from flame_accel.data.sources.record_parsing import RecordColumn
from flame_accel.data.tokens.encoder import Encoder

NUM_REQUESTS = 16
"""Number of remote files whose sizes are requested at once."""


class FileShards:
    """Records of files; each file is a shard.

    Args:
        name: how messages name the data.
        files: paths or URLs, at least one, in the order of the shards.
        record_column: which column of the records is read.
    """

    def __init__(self, name: str, files: Sequence[str], record_column: RecordColumn) -> None:
        self.name = name
        self._files = list(files)
        self._record_column = record_column
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._files)

    def read(self, shard: int, start_position: int, /) -> Iterator[PositionedRecord]:
        """Records of a file from a position; see `read_records`."""
        return read_records(self._files[shard], start_position, self._record_column)

    @property
    def quick_content_fingerprint(self) -> str:
        """Hash of the files' sizes, of their names below their common folder, and of the column."""
        if self._fingerprint is None:
            paths = [file.split("/") for file in self._files]
            levels = zip(*(path[:-1] for path in paths), strict=False)
            num_shared = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
            names = ["/".join(path[num_shared:]) for path in paths]
            with ThreadPoolExecutor(NUM_REQUESTS) as threads:
                sizes = list(threads.map(stored_size_or_none_if_missing, self._files))
            self._fingerprint = hash_list_as_json([self._record_column.name, names, sizes])
        return self._fingerprint

    def open_encoded(self, encoder: Encoder, held_out: HeldOut | None) -> SequentialDataset:
        """The documents of these shards."""
        return SequentialDataset(self, encoder, held_out)
