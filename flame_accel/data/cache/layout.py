"""What lies in the folder of a token cache: names, the record of a document, the manifest.

    flame_accel_tokens.json   the manifest, written last: what it was made from, its shards, files
    shard-00000.tokens        tokens of all its documents, bos and eos included, one after the other
    shard-00000.index         a `RECORD` for each document
    shard-00000.targets       a byte for each token, 1 where the loss is for it; conversations only
    shard-00000.info          JSON, written when the shard is whole: its files, what is damaged

All numbers are little-endian. Until the manifest is there, `prepare.info` says what the folder is
being made from; no name ends as files of records do. Nothing here makes or reads documents.
"""

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.files import find_damaged_file

MANIFEST = "flame_accel_tokens.json"
UNFINISHED = "prepare.info"
LOCK = ".prepare.lock"
FORMAT = 1
TOKENS, INDEX, TARGETS, INFO = "tokens", "index", "targets", "info"
SHARD_PREFIX = "shard-"
PLAIN, WITH_TARGETS, EMPTY, DAMAGED = range(4)
"""Kinds of documents; the last two are passed over and have no tokens."""
RECORD = np.dtype(
    [
        # `sources.hashes.record_hash`; 0 where the source itself passed it over
        ("hash", "<u8"),
        ("num_tokens", "<u4"),
        # of its text in UTF-8
        ("num_bytes", "<u4"),
        ("kind", "<u4"),
        # CRC-32 of its bytes in the file of tokens, then of those in the file of targets
        ("crc", "<u4"),
        # CRC-32 of the fields so far
        ("check", "<u4"),
        # of its first token in the shard; a wrong one gives tokens of another checksum
        ("offset", "<u8"),
    ]
)
RECORD_FIELDS = struct.Struct("<QIIIIIQ")
"""The same, for a single one."""
CHECKED_BYTES = 28
"""Its fields up to `check`."""
CHECKED_CRC = 0x2144DF1C
"""CRC-32 of anything that is followed by its CRC-32."""


def pack_record(
    digest: int, num_tokens: int, num_bytes: int, kind: int, crc: int, offset: int
) -> bytes:
    """A `RECORD`."""
    fields = digest, num_tokens, num_bytes, kind, crc
    check = zlib.crc32(RECORD_FIELDS.pack(*fields, 0, 0)[: CHECKED_BYTES - 4])
    return RECORD_FIELDS.pack(*fields, check, offset)


def shard_file(number: int, suffix: str) -> str:
    """Name of a file of a shard."""
    return f"{SHARD_PREFIX}{number:05}.{suffix}"


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest unsigned type that holds every token."""
    return np.min_scalar_type(vocabulary_size - 1).newbyteorder("<")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete cache.

    Raises:
        UserError: there is none, it is damaged, or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / UNFINISHED).is_file()
        raise UserError(
            "is a token cache that is not finished" if unfinished else f"has no {MANIFEST}",
            where=str(folder),
            remedy="run the `prepare` that made it again, which goes on where it stopped"
            if unfinished
            else "name a folder that `python -m flame_accel prepare` made",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{MANIFEST} cannot be read") from error
    if version != FORMAT:
        raise UserError(
            f"is a token cache of format {version}; this version reads format {FORMAT}",
            where=str(folder),
            remedy="prepare it again, or use the version of flame_accel that made it",
        )
    return manifest


def require_sizes(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a cache of which a file is missing or has another size; reads nothing.

    Raises:
        UserError: names the file.
    """
    for shard in manifest["shards"]:
        damage = find_damaged_file(folder, shard["files"])
        if damage is not None:
            raise damaged(folder, damage)


def first_documents(shards: Sequence[Mapping[str, Any]]) -> list[int]:
    """Index of the first document of each shard, as the manifest lists them."""
    return [0, *accumulate(shard["documents"] for shard in shards)][: len(shards)]


def damaged(folder: Path, what: str) -> UserError:
    """The error for a cache that is not what was written."""
    return UserError(
        f"the token cache is damaged: {what}",
        where=str(folder),
        remedy="restore it from a copy, or make it again: `prepare` with --overwrite",
    )
