"""Writes a token cache: shard after shard, and the manifest last.

Which documents a shard gets depends on the data only. An interrupted cache goes on behind its last
whole shard, if it was made from the same. Tokens are made in `encoding`.
"""

import errno
import json
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import BadRecordCounter, SkipPolicy, too_many_bad_records
from flame_accel.data.cache.encoding import (
    ChunkEncoder,
    EncodeMany,
    Records,
    chunk_documents,
    encode_in_order,
    hash_or_0,
)
from flame_accel.data.cache.layout import (
    FORMAT,
    LOCK,
    MANIFEST,
    SHARD_PREFIX,
    TARGETS,
    UNFINISHED,
    first_documents,
    read_manifest,
    require_sizes,
    token_dtype,
)
from flame_accel.data.cache.shards import ShardWriter, describe_shard, shard_hashes
from flame_accel.data.sources.record_hashes import sample_fingerprint
from flame_accel.files import is_temporary, sync_to_disk, write_json

LOCK_SECONDS = 5.0
"""Patience with the processes of a `prepare` that was killed."""
Shards = list[dict[str, Any]]
"""What the manifest says of each, see `describe_shard`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a cache is made from, beside the records."""

    tokenizer_identity: str
    vocabulary_size: int
    add_bos: bool
    source: Mapping[str, Any]
    """Where the records come from: options and their values, as JSON holds them."""


class Progress(NamedTuple):
    """How far a cache is."""

    documents: int
    """Those that are done ..."""
    total: int
    """... of all."""
    kept: int
    """Those of `documents` that an earlier attempt made."""
    tokens: int
    """Tokens made by this attempt."""
    seconds: float
    """Time that this attempt took so far."""


def write_cache(
    records: Records,
    encoder: EncodeMany,
    folder: Path,
    recipe: Recipe,
    *,
    processes: int = 1,
    policy: SkipPolicy | None = None,
    overwrite: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> bool:
    """Write a cache, or what is missing of it; the bytes are the same for any `processes`.

    Args:
        records: texts or conversations.
        encoder: makes documents of them, as `recipe` says.
        folder: new, empty, or with what is there of this cache.
        recipe: what the cache is made from.
        processes: 1 works in this process.
        policy: which records stop the work; others that give no document keep their index.
        overwrite: whether a cache of anything else in the folder is removed first.
        report: called after every few documents; may raise, which keeps the shards that are whole.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: another cache or other files are in the folder, it cannot be written, a record
            is refused, or the records changed meanwhile.
    """
    made_from = {
        "format": FORMAT,
        "tokenizer": recipe.tokenizer_identity,
        "add_bos": recipe.add_bos,
        "documents": len(records),
        "fingerprint": sample_fingerprint(len(records), lambda i: hash_or_0(records[i])),
        "source": dict(recipe.source),
    }
    dtype = token_dtype(recipe.vocabulary_size)
    with _claimed(folder):
        if overwrite:
            _remove_cache(folder)
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            _require_same(folder, manifest, made_from)
            require_sizes(folder, manifest)
            return False
        encode = ChunkEncoder(records=records, encoder=encoder, dtype=dtype)
        shards = _begin(folder, made_from)
        _write_shards(folder, shards, encode, processes, policy or SkipPolicy(), report)
        _finish(folder, shards, {**made_from, "dtype": dtype.name})
    return True


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, for this process; what the disk refuses is a `UserError`."""
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            "another process is preparing this cache",
            where=str(folder),
            remedy="wait for it, or name another folder",
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot be written: {error}",
            where=str(folder),
            remedy="name a folder that can be written",
        ) from error
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"there is no room left: {error.strerror}",
            where=str(folder),
            remedy="make room and run the same command again: it goes on behind the last shard "
            "that is whole",
        ) from error
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def _remove_cache(folder: Path) -> None:
    """Remove what `prepare` has written; the manifest first, so that no half of it looks whole."""
    shards = sorted(folder.glob(f"{SHARD_PREFIX}*"))
    for path in (folder / MANIFEST, folder / UNFINISHED, *shards):
        path.unlink(missing_ok=True)
        if path.name == MANIFEST:
            sync_to_disk(folder)


def _require_same(folder: Path, there: Mapping[str, Any], made_from: Mapping[str, Any]) -> None:
    old, new = ({**made, **made["source"]} for made in (there, made_from))
    differences = [
        f"{name} was {old.get(name)}, now {value}"
        for name, value in new.items()
        if name != "source" and old.get(name) != value
    ]
    if differences:
        raise UserError(
            f"holds a token cache of something else: {'; '.join(differences)}",
            where=str(folder),
            remedy="name another folder, or replace the cache with --overwrite",
        )


def _begin(folder: Path, made_from: Mapping[str, Any]) -> Shards:
    """Say what the folder is made from; gives the shards that are whole and removes the rest."""
    path = folder / UNFINISHED
    if path.exists():
        _require_same(folder, json.loads(path.read_text(encoding="utf-8")), made_from)
    else:
        names = {entry.name for entry in folder.iterdir() if not is_temporary(entry)} - {LOCK}
        if names:
            raise UserError(
                f"holds other files: {', '.join(sorted(names)[:3])}{' ...' * (len(names) > 3)}",
                where=str(folder),
                remedy="name a new or an empty folder",
            )
        write_json(path, made_from)
    shards: Shards = []
    while (shard := describe_shard(folder, len(shards))) is not None:
        shards.append(shard)
    whole = {name for shard in shards for name in shard["files"]}
    for leftover in folder.glob(f"{SHARD_PREFIX}*"):
        if leftover.name not in whole:
            leftover.unlink()
    return shards


def _write_shards(
    folder: Path,
    shards: Shards,
    encode: ChunkEncoder,
    processes: int,
    policy: SkipPolicy,
    report: Callable[[Progress], None] | None,
) -> None:
    """Append the missing shards."""
    started_at = time.monotonic()
    total, kept = len(encode.records), sum(shard["documents"] for shard in shards)
    size = chunk_documents(encode.records)
    ranges = (range(start, min(start + size, total)) for start in range(kept, total, size))
    bad = _bad_records(shards, policy)
    documents, tokens, writer = kept, 0, None
    with closing(encode_in_order(encode, ranges, processes)) as chunks:
        for chunk in chunks:
            for skipped in chunk.skipped.values():
                bad.check_record(skipped, policy, "")
            if writer is not None and not writer.has_room(chunk):
                shards.append(writer.finish())
                writer = None
            writer = writer or ShardWriter(folder, len(shards), encode.dtype)
            writer.append(chunk)
            documents += len(chunk.index)
            tokens += len(chunk.tokens) // encode.dtype.itemsize
            if report is not None:
                report(Progress(documents, total, kept, tokens, time.monotonic() - started_at))
    if writer is not None:
        shards.append(writer.finish())


def _bad_records(shards: Shards, policy: SkipPolicy) -> BadRecordCounter:
    """The count of bad records, with those that are in the shards already."""
    counted = ("damaged",) if policy.max_bad is None else ("damaged", "empty")
    bad = BadRecordCounter(policy.max_bad)
    bad.total = sum(shard[name] for shard in shards for name in counted)
    # without a limit, none is allowed
    if bad.total > (policy.max_bad or 0):
        raise too_many_bad_records(bad.total, policy.max_bad or 0, None)
    return bad


def _finish(folder: Path, shards: Shards, made_from: Mapping[str, Any]) -> None:
    """Write the manifest, if these are the documents that there were at the start."""
    counts = {
        name: sum(shard[name] for shard in shards)
        for name in ("tokens", "bytes", "empty", "damaged")
    }
    if not counts["tokens"]:
        raise UserError(
            f"there is no text in any of the {made_from['documents']} documents",
            where=str(folder),
            remedy="check the text column (training.text_column)",
        )
    hashes = [shard_hashes(folder, number) for number in range(len(shards))]
    firsts = first_documents(shards)

    def hash_of(index: int) -> int:
        number = bisect_right(firsts, index) - 1
        return int(hashes[number][index - firsts[number]])

    if sample_fingerprint(made_from["documents"], hash_of) != made_from["fingerprint"]:
        raise UserError(
            "the documents changed while they were tokenised",
            where=str(folder),
            remedy="prepare them again with --overwrite, when nothing writes to them any more",
        )
    targets = any(name.endswith(f".{TARGETS}") for shard in shards for name in shard["files"])
    content = {**made_from, "targets": targets, **counts, "shards": shards}
    write_json(folder / MANIFEST, content)
    (folder / UNFINISHED).unlink()
