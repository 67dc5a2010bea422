"""Writes the files of one shard of a token cache, and checks what an earlier attempt wrote.

The .info file of a shard is written last, once everything else is on the disk: a shard without one
is incomplete. `cache_writer` decides which documents a shard holds.
"""

from pathlib import Path

import numpy as np

from flame_accel.data.cache.chunk_encoder import EncodedChunk
from flame_accel.data.cache.file_format import (
    DAMAGED,
    EMPTY,
    INDEX,
    INDEX_DTYPE,
    INFO,
    TARGETS,
    TOKENS,
    ShardEntry,
    shard_file_name,
)
from flame_accel.files import (
    ChecksummedWriter,
    bytes_xxh3,
    describe_first_damage,
    write_json_atomically,
)
from flame_accel.json_text import parse_json_text

MAX_SHARD_BYTES = 1 << 28
"""Most bytes of tokens in a shard, unless a single chunk has more."""
MAX_SHARD_DOCUMENTS = 1 << 20


class ShardWriter:
    """Writes one shard, chunk by chunk.

    Args:
        folder: of the cache.
        number: of the shard, from 0.
        dtype: of the tokens.
    """

    def __init__(self, folder: Path, number: int, dtype: np.dtype) -> None:
        self._folder = folder
        self._number = number
        self._itemsize = dtype.itemsize
        self._files: dict[str, ChecksummedWriter] = {}
        self._skipped: dict[int, tuple[str, str]] = {}
        self._counts = dict.fromkeys(("documents", "tokens", "bytes", "empty", "damaged"), 0)
        for suffix in (TOKENS, INDEX):
            self._open_and_register_file(suffix)

    def has_room_for(self, chunk: EncodedChunk) -> bool:
        """Whether a chunk fits into this shard; the first one always does."""
        documents = self._counts["documents"]
        size = self._counts["tokens"] * self._itemsize
        return not documents or (
            size + len(chunk.tokens) <= MAX_SHARD_BYTES
            and documents + len(chunk.index) <= MAX_SHARD_DOCUMENTS
        )

    def append_chunk(self, chunk: EncodedChunk) -> None:
        """Write the documents of a chunk after those already written."""
        counts, index = self._counts, chunk.index.copy()
        targets = chunk.targets
        if targets is not None and TARGETS not in self._files:
            # the file does not exist as long as all tokens are targets
            self._open_and_register_file(TARGETS).write(b"\1" * counts["tokens"])
        if TARGETS in self._files:
            num_tokens = len(chunk.tokens) // self._itemsize
            self._files[TARGETS].write(b"\1" * num_tokens if targets is None else targets)
        index["offset"] += counts["tokens"]
        self._files[INDEX].write(index.tobytes())
        self._files[TOKENS].write(chunk.tokens)
        for position, skipped in chunk.skipped.items():
            # there is nothing to say about empty ones, and there may be many
            if skipped.why == "damaged":
                self._skipped[counts["documents"] + position] = (skipped.where, skipped.what)
        counts["documents"] += len(index)
        counts["tokens"] += int(index["num_tokens"].sum())
        counts["bytes"] += int(index["num_bytes"].sum())
        counts["empty"] += int((index["kind"] == EMPTY).sum())
        counts["damaged"] += int((index["kind"] == DAMAGED).sum())

    def finish(self) -> ShardEntry:
        """Sync all files to the disk, mark the shard as complete, return its manifest entry."""
        files = {shard_file_name(self._number, name): f.close() for name, f in self._files.items()}
        write_json_atomically(
            self._folder / shard_file_name(self._number, INFO),
            {**self._counts, "files": files, "skipped": self._skipped},
        )
        shard = read_shard_entry_if_complete(self._folder, self._number)
        assert shard is not None
        return shard

    def _open_and_register_file(self, suffix: str) -> ChecksummedWriter:
        path = self._folder / shard_file_name(self._number, suffix)
        return self._files.setdefault(suffix, ChecksummedWriter(path))


def read_shard_entry_if_complete(folder: Path, number: int) -> ShardEntry | None:
    """The manifest's entry for a shard (counts and files); None if the shard is not complete."""
    path = folder / shard_file_name(number, INFO)
    if not path.is_file():
        return None
    content = path.read_bytes()
    shard = parse_json_text(content)
    if describe_first_damage(folder, shard["files"]) is not None:
        return None
    del shard["skipped"]
    shard["files"][path.name] = {"size": len(content), "xxh3": bytes_xxh3(content)}
    return shard


def memory_map_record_hashes(folder: Path, number: int) -> np.ndarray:
    """Hashes of the records of a shard, uint64 [documents], memory-mapped."""
    return np.memmap(folder / shard_file_name(number, INDEX), INDEX_DTYPE, "r")["hash"]
