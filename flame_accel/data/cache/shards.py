"""One shard of a token cache: writing its files, and what an earlier attempt left of it.

A shard is there when its .info is: that is written last, after everything else is on the disk.
Which documents a shard gets is `writer`'s part.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flame_accel.data.cache.encoding import Chunk
from flame_accel.data.cache.layout import (
    DAMAGED,
    EMPTY,
    INDEX,
    INFO,
    RECORD,
    TARGETS,
    TOKENS,
    shard_file,
)
from flame_accel.files import ChecksummedWriter, find_damaged_file, write_json

SHARD_BYTES = 1 << 28
"""Most tokens of a shard, in bytes, unless a single chunk has more ..."""
SHARD_DOCUMENTS = 1 << 20
"""... and most documents."""


class ShardWriter:
    """Writes one shard, chunk by chunk.

    Args:
        folder: of the cache.
        number: of the shard.
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
            self._open(suffix)

    def has_room(self, chunk: Chunk) -> bool:
        """Whether a chunk belongs into this shard; the first one always does."""
        documents = self._counts["documents"]
        size = self._counts["tokens"] * self._itemsize
        return not documents or (
            size + len(chunk.tokens) <= SHARD_BYTES
            and documents + len(chunk.index) <= SHARD_DOCUMENTS
        )

    def append(self, chunk: Chunk) -> None:
        """Write the documents of a chunk behind those that are there."""
        counts, index = self._counts, chunk.index.copy()
        targets = chunk.targets
        if targets is not None and TARGETS not in self._files:
            # a shard has no such file as long as the loss is for everything
            self._open(TARGETS).write(b"\1" * counts["tokens"])
        if TARGETS in self._files:
            num_tokens = len(chunk.tokens) // self._itemsize
            self._files[TARGETS].write(b"\1" * num_tokens if targets is None else targets)
        index["offset"] += counts["tokens"]
        self._files[INDEX].write(index.tobytes())
        self._files[TOKENS].write(chunk.tokens)
        for place, skipped in chunk.skipped.items():
            # of empty ones there is nothing to say, and there may be many
            if skipped.why == "damaged":
                self._skipped[counts["documents"] + place] = (skipped.where, skipped.what)
        counts["documents"] += len(index)
        counts["tokens"] += int(index["num_tokens"].sum())
        counts["bytes"] += int(index["num_bytes"].sum())
        counts["empty"] += int((index["kind"] == EMPTY).sum())
        counts["damaged"] += int((index["kind"] == DAMAGED).sum())

    def finish(self) -> dict[str, Any]:
        """Bring everything to the disk, then say that the shard is there; see `describe_shard`."""
        files = {shard_file(self._number, name): f.close() for name, f in self._files.items()}
        write_json(
            self._folder / shard_file(self._number, INFO),
            {**self._counts, "files": files, "skipped": self._skipped},
        )
        shard = describe_shard(self._folder, self._number)
        assert shard is not None
        return shard

    def _open(self, suffix: str) -> ChecksummedWriter:
        path = self._folder / shard_file(self._number, suffix)
        return self._files.setdefault(suffix, ChecksummedWriter(path))


def describe_shard(folder: Path, number: int) -> dict[str, Any] | None:
    """What the manifest says of a shard; None if it is not whole."""
    path = folder / shard_file(number, INFO)
    if not path.is_file():
        return None
    content = path.read_bytes()
    shard = json.loads(content)
    if find_damaged_file(folder, shard["files"]) is not None:
        return None
    del shard["skipped"]
    checksum = xxhash.xxh3_128(content).hexdigest()
    shard["files"][path.name] = {"size": len(content), "xxh3": checksum}
    return shard


def shard_hashes(folder: Path, number: int) -> np.ndarray:
    """Hashes of the records of a shard, unsigned 64 bit [documents]; read when asked for."""
    return np.memmap(folder / shard_file(number, INDEX), RECORD, "r")["hash"]
