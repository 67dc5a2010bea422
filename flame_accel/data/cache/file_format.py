"""Files of a token cache: their names, the index entry of a document, the manifest.

    flame_accel_tokens.json   manifest, written last: what the cache was made from, shards, files
    shard-00000.tokens        tokens of its documents, bos and eos included, without gaps
    shard-00000.index         an entry of `INDEX_DTYPE` for each document
    shard-00000.targets       a byte for each token, 1 if it is a target; conversations only
    shard-00000.info          JSON, written once the shard is complete: files, damaged records

All numbers are little-endian. Until the manifest exists, `prepare.info` says what the cache is
being made from. No name has a suffix that data files have. Documents are neither encoded nor read
here.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.files import FileDescription, describe_first_damage
from flame_accel.json_text import parse_json_text

MANIFEST = "flame_accel_tokens.json"
UNFINISHED = "prepare.info"
LOCK = ".prepare.lock"
FORMAT_VERSION = 1
TOKENS, INDEX, TARGETS, INFO = "tokens", "index", "targets", "info"
SHARD_PREFIX = "shard-"
PLAIN, WITH_TARGETS, EMPTY, DAMAGED = range(4)
"""Kinds of documents; the last two were skipped and have no tokens."""
INDEX_DTYPE = np.dtype(
    [
        # `record_hashes.record_hash`; 0 if the source itself skipped the record
        ("hash", "<u8"),
        ("num_tokens", "<u4"),
        # of its text in UTF-8
        ("num_bytes", "<u4"),
        ("kind", "<u4"),
        # CRC-32 of its bytes in the file of tokens, continued over those in the file of targets
        ("crc", "<u4"),
        # CRC-32 of the fields so far
        ("check", "<u4"),
        # of its first token in the shard; with a wrong one, `crc` does not match
        ("offset", "<u8"),
    ]
)
INDEX_STRUCT = struct.Struct("<QIIIIIQ")
"""`INDEX_DTYPE` for a single entry."""
TOKEN_DTYPES = ("uint8", "uint16", "uint32")
CHECKED_BYTES = 28
"""Bytes of an entry up to and including `check`."""
CHECKED_CRC = 0x2144DF1C
"""CRC-32 of anything that is followed by its own CRC-32."""


class ShardEntry(TypedDict):
    """What the manifest says of a shard."""

    documents: int
    """Records, skipped ones included."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the texts."""
    empty: int
    damaged: int
    files: dict[str, FileDescription]
    """Files of the shard by name."""


class CacheInputs(TypedDict):
    """What a cache is made from; `UNFINISHED` holds it until the manifest exists."""

    format: int
    tokenizer: str
    """Its identity."""
    add_bos: bool
    documents: int
    """Records, skipped ones included."""
    fingerprint: str
    source: Mapping[str, str | int | None]
    """Where the records come from: options and their values."""


class Manifest(CacheInputs):
    """What a finished cache holds."""

    dtype: str
    """Of its tokens."""
    targets: bool
    """Whether any shard has a file of targets."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the texts."""
    empty: int
    damaged: int
    shards: list[ShardEntry]


class IndexEntry(NamedTuple):
    """What the index says of a document; fields as in `INDEX_DTYPE`."""

    hash: int
    num_tokens: int
    num_bytes: int
    kind: int
    crc: int
    check: int
    offset: int


def pack_index_entry_with_own_crc(
    record_hash: int, num_tokens: int, num_bytes: int, kind: int, document_crc: int, offset: int
) -> bytes:
    """An entry as its bytes in the index, with the checksum of its fields."""
    fields = record_hash, num_tokens, num_bytes, kind, document_crc
    check = zlib.crc32(INDEX_STRUCT.pack(*fields, 0, 0)[: CHECKED_BYTES - 4])
    return INDEX_STRUCT.pack(*fields, check, offset)


def shard_file_name(number: int, suffix: str) -> str:
    """Name of one file of a shard, such as `shard-00000.tokens`."""
    return f"{SHARD_PREFIX}{number:05}.{suffix}"


def smallest_token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds every token id."""
    return np.min_scalar_type(vocabulary_size - 1).newbyteorder("<")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished cache.

    Raises:
        UserError: it does not exist, is damaged, or has another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / UNFINISHED).is_file()
        raise UserError(
            "is a token cache that is not finished" if unfinished else f"has no {MANIFEST}",
            where=str(folder),
            remedy="run the `prepare` command that started it again: it continues where it stopped"
            if unfinished
            else "name a folder that `python -m flame_accel prepare` wrote",
        )
    try:
        manifest = parse_json_text(path.read_bytes())
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged_cache_error(folder, f"{MANIFEST} cannot be read") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"is a token cache of format {version}; this version reads format {FORMAT_VERSION}",
            where=str(folder),
            remedy="prepare it again, or use the version of flame_accel that wrote it",
        )
    contradiction = _find_contradiction(manifest)
    if contradiction is not None:
        raise damaged_cache_error(folder, f"{MANIFEST} {contradiction}")
    return manifest


def _find_contradiction(manifest: Manifest) -> str | None:
    """What a manifest says that cannot be, as part of a sentence; None if all of it can.

    A run asks for as many documents as it names, and reads the files that it names.
    """
    try:
        shards = manifest["shards"]
        if manifest["dtype"] not in TOKEN_DTYPES:
            return f"names tokens of type {manifest['dtype']!r}"
        for total in ("documents", "tokens"):
            counts = [manifest[total], *(shard[total] for shard in shards)]
            if not all(type(count) is int and count >= 0 for count in counts):
                return f"has a number of {total} that is none"
            if manifest[total] != sum(shard[total] for shard in shards):
                return f"has another number of {total} than its shards"
        for number, shard in enumerate(shards):
            sizes = {name: file["size"] for name, file in shard["files"].items()}
            expected = {
                shard_file_name(number, INDEX): shard["documents"] * INDEX_DTYPE.itemsize,
                shard_file_name(number, TOKENS): shard["tokens"]
                * np.dtype(manifest["dtype"]).itemsize,
                shard_file_name(number, TARGETS): shard["tokens"],
                shard_file_name(number, INFO): sizes.get(shard_file_name(number, INFO)),
            }
            optional = {shard_file_name(number, TARGETS)}
            if not expected.keys() - optional <= sizes.keys() <= expected.keys():
                return f"names other files than those of shard {number}"
            for name, size in sizes.items():
                if type(size) is not int or size != expected[name]:
                    return f"contradicts itself: {name} has {size} bytes, not {expected[name]}"
    except (KeyError, TypeError, AttributeError):
        return "is incomplete"
    return None


def check_file_sizes(folder: Path, manifest: Manifest) -> None:
    """Check that all files exist and have the sizes in the manifest; does not read them.

    Raises:
        UserError: names the first file that is missing or has another size.
    """
    for shard in manifest["shards"]:
        damage = describe_first_damage(folder, shard["files"])
        if damage is not None:
            raise damaged_cache_error(folder, damage)


def first_document_indices(shards: Sequence[ShardEntry]) -> list[int]:
    """Index of the first document of each shard; `shards` as in the manifest."""
    return [0, *accumulate(shard["documents"] for shard in shards)][: len(shards)]


def damaged_cache_error(folder: Path, damage: str) -> UserError:
    """The error to raise for a cache whose files are not what was written."""
    return UserError(
        f"the token cache is damaged: {damage}",
        where=str(folder),
        remedy="restore it from a copy, or write it again with `prepare` and --overwrite",
    )
