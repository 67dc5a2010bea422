"""Reads a token cache: any document at once, straight from memory-mapped files.

A shard is mapped when one of its documents is read. Damaged data is never returned: file sizes are
checked when a cache is opened, a document and its index entry when it is read.
"""

import mmap
import zlib
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.data.cache.file_format import (
    CHECKED_BYTES,
    CHECKED_CRC,
    EMPTY,
    INDEX,
    INDEX_DTYPE,
    INDEX_STRUCT,
    INFO,
    TARGETS,
    TOKENS,
    WITH_TARGETS,
    IndexEntry,
    ShardEntry,
    check_file_sizes,
    damaged_cache_error,
    first_document_indices,
    read_manifest,
    shard_file_name,
)
from flame_accel.data.documents import Document, EncodedRecord, Skipped
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.files import FileDescription, describe_first_damage
from flame_accel.json_text import parse_json_text

MAX_VERIFIED_BYTES = 256_000_000
"""A cache of at most this size is read and verified completely when it is opened."""
MAX_OPEN_SHARDS = 128
"""Shards mapped at a time; each takes up to three file descriptors of the process."""
READ_AHEAD_BYTES = 16_384
"""Longer documents are requested from the disk as a whole, not page by page."""
HELD_OUT = Skipped("held out")


class TokenCache:
    """Documents by index, from a folder that `prepare` wrote; an `IndexedDocuments`.

    Args:
        folder: the cache.
        tokenizer_identity: of the tokenizer that the run uses.
        add_bos: whether the run's documents start with bos.
        held_out: which side of a split by hash is wanted, the documents of the other are `Skipped`;
            None: all documents.

    Raises:
        UserError: no finished cache, another tokenizer or bos policy, or a damaged file.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        tokenizer_identity: str,
        add_bos: bool,
        held_out: HeldOut | None = None,
    ) -> None:
        self.name = str(folder)
        self._folder = Path(folder)
        self._manifest = read_manifest(self._folder)
        self._check_tokenizer_and_bos(tokenizer_identity, add_bos)
        check_file_sizes(self._folder, self._manifest)
        self._held_out = held_out
        self._num_documents: int = self._manifest["documents"]
        self._dtype = np.dtype(self._manifest["dtype"]).newbyteorder("<")
        self._shards: list[ShardEntry] = self._manifest["shards"]
        self._first_documents = first_document_indices(self._shards)
        self._mapped: dict[int, _MappedShard] = {}
        # by shard: (where, what) of each damaged record
        self._damaged: dict[int, dict[str, list[str]]] = {}
        files = {name: file for shard in self._shards for name, file in shard["files"].items()}
        if sum(file["size"] for file in files.values()) <= MAX_VERIFIED_BYTES:
            self._verify_checksums(files)

    def __len__(self) -> int:
        return self._num_documents

    @property
    def sampled_records_fingerprint(self) -> str:
        """Hash of the records, the same as that of the table that the cache was made from."""
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
        shard = self._mapped_shard_of_document(index)
        entry = self._read_and_verify_index_entry(shard, index)
        # a record that the source itself skipped has no hash and is on neither side
        if self._held_out is not None and entry.hash and not self._held_out.keeps(entry.hash):
            return HELD_OUT
        if entry.kind >= EMPTY:
            return self._read_skipped_record(shard, index, entry.kind)
        stop = entry.offset + entry.num_tokens
        tokens = shard.tokens[entry.offset : stop]
        if tokens.nbytes > READ_AHEAD_BYTES:
            start = entry.offset * self._dtype.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
            shard.token_file.madvise(mmap.MADV_WILLNEED, start, tokens.nbytes)
        targets, checksum = None, zlib.crc32(tokens.data)
        if entry.kind == WITH_TARGETS:
            if shard.targets is None:
                raise self._lying_entry_error(index, shard)
            targets = shard.targets[entry.offset : stop]
            checksum = zlib.crc32(targets.data, checksum)
        if checksum != entry.crc:
            names = shard_file_name(shard.number, TOKENS)
            if targets is not None:
                names += f" or {shard_file_name(shard.number, TARGETS)}"
            raise damaged_cache_error(
                self._folder, f"document {index} in {names} is not what was written (CRC-32)"
            )
        return Document(tokens, targets)

    def read_with_num_text_bytes(self, index: int) -> EncodedRecord:
        """A document, and the UTF-8 bytes of its text, which a held-out one has as well."""
        shard = self._mapped_shard_of_document(index)
        return EncodedRecord(self[index], self._read_and_verify_index_entry(shard, index).num_bytes)

    def __getstate__(self) -> dict[str, object]:
        # memory maps cannot be sent to another process
        return {**self.__dict__, "_mapped": {}}

    def _check_tokenizer_and_bos(self, tokenizer_identity: str, add_bos: bool) -> None:
        made = self._manifest["tokenizer"], self._manifest["add_bos"]
        if made != (tokenizer_identity, add_bos):
            of_cache, of_run = (
                f"tokenizer {identity} (a hash of what it does) and bos "
                + ("added" if adds else "not added")
                for identity, adds in (made, (tokenizer_identity, add_bos))
            )
            raise UserError(
                f"was made with {of_cache}; the run has {of_run}",
                where=self.name,
                remedy="prepare a cache with the model.tokenizer_path and training.add_bos of this "
                "run, or train with those of the cache",
            )

    def _verify_checksums(self, files: Mapping[str, FileDescription]) -> None:
        damage = describe_first_damage(self._folder, files, compare_checksums=True)
        if damage is not None:
            raise damaged_cache_error(self._folder, damage)

    def _mapped_shard_of_document(self, index: int) -> "_MappedShard":
        """The shard that holds a document; its files are mapped if they are not yet."""
        if not 0 <= index < self._num_documents:
            raise IndexError(f"document {index} of {self._num_documents}")
        number = bisect_right(self._first_documents, index) - 1
        return self._mapped.get(number) or self._map_new_shard_evicting_oldest_if_full(number)

    def _read_and_verify_index_entry(self, shard: "_MappedShard", index: int) -> IndexEntry:
        """The index entry of a document of the shard, verified except for the offset."""
        start = (index - shard.first_document) * INDEX_DTYPE.itemsize
        entry = shard.index[start : start + INDEX_DTYPE.itemsize]
        if zlib.crc32(entry[:CHECKED_BYTES]) != CHECKED_CRC:
            name = shard_file_name(shard.number, INDEX)
            raise damaged_cache_error(
                self._folder, f"the entry of document {index} in {name} is not what was written"
            )
        return IndexEntry._make(INDEX_STRUCT.unpack(entry))

    def _map_new_shard_evicting_oldest_if_full(self, number: int) -> "_MappedShard":
        """Map the files of a shard; unmaps the oldest one if too many are mapped."""
        if len(self._mapped) == MAX_OPEN_SHARDS:
            # views that are still in use keep their map
            del self._mapped[next(iter(self._mapped))]
        names = [shard_file_name(number, suffix) for suffix in (INDEX, TOKENS, TARGETS)]
        index, tokens, targets = (
            _memory_map_file(self._folder / name) if name in self._shards[number]["files"] else None
            for name in names
        )
        assert index is not None
        assert tokens is not None
        shard = self._mapped[number] = _MappedShard(
            number=number,
            first_document=self._first_documents[number],
            index=index,
            token_file=tokens,
            tokens=np.frombuffer(tokens, self._dtype),
            targets=None if targets is None else np.frombuffer(targets, bool),
        )
        return shard

    def _read_skipped_record(self, shard: "_MappedShard", index: int, kind: int) -> Skipped:
        if kind == EMPTY:
            return Skipped("empty", f"{self.name}, document {index}")
        if shard.number not in self._damaged:
            name = shard_file_name(shard.number, INFO)
            self._verify_checksums({name: self._shards[shard.number]["files"][name]})
            try:
                info = parse_json_text((self._folder / name).read_bytes())
                self._damaged[shard.number] = dict(info["skipped"])
            except (ValueError, KeyError, TypeError) as error:
                raise damaged_cache_error(self._folder, f"{name} cannot be read") from error
        try:
            where, what = self._damaged[shard.number][str(index - shard.first_document)]
        except (KeyError, ValueError, TypeError):
            raise self._lying_entry_error(index, shard) from None
        return Skipped("damaged", where, what)

    def _lying_entry_error(self, index: int, shard: "_MappedShard") -> UserError:
        name = shard_file_name(shard.number, INDEX)
        return damaged_cache_error(
            self._folder, f"the entry of document {index} in {name} is not that of its other files"
        )


class _MappedShard(NamedTuple):
    """Memory-mapped files of a shard."""

    number: int
    first_document: int
    """Index in the cache of its first document."""
    index: mmap.mmap
    token_file: mmap.mmap
    tokens: np.ndarray
    """[tokens of the shard], a view of `token_file`."""
    targets: np.ndarray | None
    """bool [tokens of the shard]."""


def _memory_map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        # an empty file cannot be mapped: a page that nobody reads instead
        if not size:
            return mmap.mmap(-1, mmap.PAGESIZE)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    # documents are read in random order: reading ahead would be wasted
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped
