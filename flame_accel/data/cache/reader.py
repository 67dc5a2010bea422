"""Reads a token cache: any document at once, straight from files that are mapped into memory.

A shard is opened when one of its documents is asked for. Nothing damaged is ever given out: sizes
are checked when a cache is opened, a document and its record in the index when it is read.
"""

import json
import mmap
import zlib
from bisect import bisect_right
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.data.cache.layout import (
    CHECKED_BYTES,
    CHECKED_CRC,
    EMPTY,
    INDEX,
    INFO,
    RECORD,
    RECORD_FIELDS,
    TARGETS,
    TOKENS,
    WITH_TARGETS,
    damaged,
    first_documents,
    read_manifest,
    require_sizes,
    shard_file,
)
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.sources.record_hashes import is_held_out
from flame_accel.files import find_damaged_file

VERIFY_AT_OPEN = 256_000_000
"""A cache of at most so many bytes is read and verified as a whole when it is opened."""
MAX_OPEN_SHARDS = 128
"""Shards that are open at a time; each has up to three of the process's file descriptors."""
READ_AHEAD_BYTES = 16_384
"""Longer documents are asked for as a whole, not page by page."""
HELD_OUT = Skipped("held out")


class TokenCache:
    """Documents by index, from a folder that `prepare` made; what the protocol `Documents` says.

    Args:
        folder: the cache.
        tokenizer_identity: of the tokenizer that the run uses.
        add_bos: whether the run's documents start with bos.
        held_out: (share, side): only the documents on one side of a split by their hashes, the
            others being `Skipped`: with True the share, with False the rest. None: all.

    Raises:
        UserError: no complete cache, another tokenizer or bos policy, or a damaged file.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        tokenizer_identity: str,
        add_bos: bool,
        held_out: tuple[float, bool] | None = None,
    ) -> None:
        self.name = str(folder)
        self._folder = Path(folder)
        self._manifest = read_manifest(self._folder)
        self._require(tokenizer_identity, add_bos)
        require_sizes(self._folder, self._manifest)
        self._held_out = held_out
        self._num_documents: int = self._manifest["documents"]
        self._dtype = np.dtype(self._manifest["dtype"]).newbyteorder("<")
        self._shards: list[dict[str, Any]] = self._manifest["shards"]
        self._firsts = first_documents(self._shards)
        self._open: dict[int, _Shard] = {}
        # by shard: where and what, of each damaged record
        self._damaged: dict[int, dict[str, list[str]]] = {}
        files = {name: file for shard in self._shards for name, file in shard["files"].items()}
        if sum(file["size"] for file in files.values()) <= VERIFY_AT_OPEN:
            self._verify(files)

    def __len__(self) -> int:
        return self._num_documents

    @property
    def fingerprint(self) -> str:
        """Hash of the texts, the same as that of the table that the cache was made from."""
        return self._manifest["fingerprint"]

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, on both sides of a split."""
        return self._manifest["tokens"]

    def __getitem__(self, index: int) -> Document | Skipped:
        """A document; its tokens are a read-only view of the file.

        Raises:
            UserError: its bytes are not what was written.
        """
        shard, (digest, length, _, kind, checksum, _, offset) = self._find(index)
        # what the source itself passed over has no hash and is on no side
        if self._held_out is not None and digest:
            share, side = self._held_out
            if is_held_out(digest, share) != side:
                return HELD_OUT
        if kind >= EMPTY:
            return self._skipped(shard, index, kind)
        tokens = shard.tokens[offset : offset + length]
        if tokens.nbytes > READ_AHEAD_BYTES:
            start = offset * self._dtype.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
            shard.file.madvise(mmap.MADV_WILLNEED, start, tokens.nbytes)
        targets, found = None, zlib.crc32(tokens.data)
        if kind == WITH_TARGETS:
            assert shard.targets is not None
            targets = shard.targets[offset : offset + length]
            found = zlib.crc32(targets.data, found)
        if found != checksum:
            names = shard_file(shard.number, TOKENS)
            if targets is not None:
                names += f" or {shard_file(shard.number, TARGETS)}"
            raise damaged(
                self._folder, f"document {index} in {names} is not what was written (CRC-32)"
            )
        return Document(tokens, targets)

    def bytes_of(self, index: int) -> int:
        """Length of a document's text in UTF-8, on whichever side of a split; 0 without tokens."""
        return self._find(index)[1][2]

    def lengths(self) -> np.ndarray:
        """Tokens of every document, whichever its side, int64 [documents]; reads all indices."""
        parts = []
        for number, shard in enumerate(self._shards):
            name = shard_file(number, INDEX)
            self._verify({name: shard["files"][name]})
            parts.append(np.fromfile(self._folder / name, RECORD)["num_tokens"].astype(np.int64))
        return np.concatenate(parts)

    def __getstate__(self) -> dict[str, Any]:
        # maps of files stay in their process
        return {**self.__dict__, "_open": {}}

    def _require(self, tokenizer_identity: str, add_bos: bool) -> None:
        made = self._manifest["tokenizer"], self._manifest["add_bos"]
        if made != (tokenizer_identity, add_bos):
            there, here = (
                f"tokenizer {identity} (a hash of what it does) and bos "
                + ("added" if adds else "not added")
                for identity, adds in (made, (tokenizer_identity, add_bos))
            )
            raise UserError(
                f"was made with {there}; the run has {here}",
                where=self.name,
                remedy="prepare a cache with the model.tokenizer_path and training.add_bos of this "
                "run, or train with those of the cache",
            )

    def _verify(self, files: dict[str, Any]) -> None:
        damage = find_damaged_file(self._folder, files, content=True)
        if damage is not None:
            raise damaged(self._folder, damage)

    def _find(self, index: int) -> tuple["_Shard", tuple[int, ...]]:
        """The shard of a document, and its record, verified but for the offset."""
        if not 0 <= index < self._num_documents:
            raise IndexError(f"document {index} of {self._num_documents}")
        number = bisect_right(self._firsts, index) - 1
        shard = self._open.get(number) or self._shard(number)
        place = (index - shard.first) * RECORD.itemsize
        record = shard.index[place : place + RECORD.itemsize]
        if zlib.crc32(record[:CHECKED_BYTES]) != CHECKED_CRC:
            name = shard_file(number, INDEX)
            raise damaged(
                self._folder, f"the record of document {index} in {name} is not what was written"
            )
        return shard, RECORD_FIELDS.unpack(record)

    def _shard(self, number: int) -> "_Shard":
        if number in self._open:
            return self._open[number]
        if len(self._open) == MAX_OPEN_SHARDS:
            # views that are still in use keep their map
            del self._open[next(iter(self._open))]
        targets = shard_file(number, TARGETS)
        names = [shard_file(number, suffix) for suffix in (INDEX, TOKENS, TARGETS)]
        index, tokens, targets = (
            _map_file(self._folder / name) if name in self._shards[number]["files"] else None
            for name in names
        )
        assert index is not None
        assert tokens is not None
        shard = self._open[number] = _Shard(
            number=number,
            first=self._firsts[number],
            index=index,
            file=tokens,
            tokens=np.frombuffer(tokens, self._dtype),
            targets=None if targets is None else np.frombuffer(targets, bool),
        )
        return shard

    def _skipped(self, shard: "_Shard", index: int, kind: int) -> Skipped:
        if kind == EMPTY:
            return Skipped("empty", f"{self.name}, document {index}")
        if shard.number not in self._damaged:
            name = shard_file(shard.number, INFO)
            self._verify({name: self._shards[shard.number]["files"][name]})
            info = json.loads((self._folder / name).read_text(encoding="utf-8"))
            self._damaged[shard.number] = info["skipped"]
        return Skipped("damaged", *self._damaged[shard.number][str(index - shard.first)])


class _Shard(NamedTuple):
    """Files of a shard, mapped into memory."""

    number: int
    first: int
    index: mmap.mmap
    file: mmap.mmap
    tokens: np.ndarray
    targets: np.ndarray | None


def _map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        # there is no map of nothing: a page that nobody reads
        size = file.seek(0, 2)
        if not size:
            return mmap.mmap(-1, mmap.PAGESIZE)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    # documents are read in random order: what lies around one is not what comes next
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped
