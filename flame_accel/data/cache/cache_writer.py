"""Writes a token cache: one shard after another, and the manifest last.

Which documents a shard holds depends on the data alone. An interrupted cache is continued after its
last complete shard if it is made from the same data in the same way. `chunk_encoder` does the
encoding, `cache_progress` says how far it is.
"""

import errno
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock, Timeout

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import BadRecordCounter, SkipPolicy, too_many_bad_records_error
from flame_accel.data.cache.cache_progress import CacheProgress
from flame_accel.data.cache.chunk_encoder import (
    BatchEncoder,
    ChunkEncoder,
    choose_records_per_chunk,
    encode_chunks_in_order,
)
from flame_accel.data.cache.file_format import (
    FORMAT_VERSION,
    LOCK,
    MANIFEST,
    SHARD_PREFIX,
    TARGETS,
    UNFINISHED,
    CacheInputs,
    Manifest,
    ShardEntry,
    check_file_sizes,
    first_document_indices,
    read_manifest,
    smallest_token_dtype,
)
from flame_accel.data.cache.shard_writer import (
    ShardWriter,
    memory_map_record_hashes,
    read_shard_entry_if_complete,
)
from flame_accel.data.sources.record_hashes import fingerprint_from_sample, record_hash_or_zero
from flame_accel.data.stages import IndexedRecords
from flame_accel.files import has_temporary_name, sync_to_disk, write_json_atomically
from flame_accel.json_text import parse_json_text

LOCK_TIMEOUT_SECONDS = 5.0
"""How long to wait for worker processes of a killed `prepare` to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheOrigin:
    """What a cache is made from, apart from the records themselves."""

    tokenizer_identity: str
    vocabulary_size: int
    add_bos: bool
    source: Mapping[str, str | int | None]
    """Where the records come from: options and their values."""


def write_cache_unless_finished(
    records: IndexedRecords,
    encoder: BatchEncoder,
    folder: Path,
    origin: CacheOrigin,
    *,
    num_processes: int = 1,
    policy: SkipPolicy | None = None,
    overwrite: bool = False,
    on_progress: Callable[[CacheProgress], None] | None = None,
) -> bool:
    """Write a cache, or the rest of it; the bytes are the same for any `num_processes`.

    Args:
        records: texts or conversations.
        encoder: encodes them as `origin` says.
        folder: new, empty, or holding an unfinished or finished cache of the same data.
        origin: what the cache is made from.
        num_processes: with 1 this process does the work.
        policy: which skipped records are an error; the others keep their index.
        overwrite: whether to remove a cache in the folder that is made from anything else.
        on_progress: called every few documents; it may raise, complete shards are then kept.

    Returns:
        Whether anything was written; False if the cache was finished already.

    Raises:
        UserError: the folder holds another cache or other files or cannot be written, a record is
            not allowed by the policy, or the records changed while they were read.
    """
    inputs: CacheInputs = {
        "format": FORMAT_VERSION,
        "tokenizer": origin.tokenizer_identity,
        "add_bos": origin.add_bos,
        "documents": len(records),
        "fingerprint": fingerprint_from_sample(
            len(records), lambda i: record_hash_or_zero(records[i])
        ),
        "source": dict(origin.source),
    }
    dtype = smallest_token_dtype(origin.vocabulary_size)
    with _create_and_lock_folder_converting_disk_errors(folder):
        if overwrite:
            _delete_cache_files(folder)
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            _check_same_inputs(folder, manifest, inputs)
            check_file_sizes(folder, manifest)
            return False
        chunk_encoder = ChunkEncoder(records=records, encoder=encoder, dtype=dtype)
        _claim_empty_or_same_cache(folder, inputs)
        shards = _keep_only_complete_shards(folder)
        policy = policy or SkipPolicy()
        _write_and_append_missing_shards(
            folder, shards, chunk_encoder, num_processes, policy, on_progress
        )
        _check_any_tokens(folder, shards)
        _check_records_unchanged_since_start(folder, shards, inputs)
        _write_manifest_and_delete_inputs_file(folder, shards, inputs, dtype)
    return True


@contextmanager
def _create_and_lock_folder_converting_disk_errors(folder: Path) -> Iterator[None]:
    """Create a folder if needed and lock it for this process; disk errors become `UserError`."""
    lock = FileLock(folder / LOCK, timeout=LOCK_TIMEOUT_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            "another process is preparing this cache",
            where=str(folder),
            remedy="wait until it has finished, or name another folder",
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
            f"there is no space left: {error.strerror}",
            where=str(folder),
            remedy="free some space and run the same command again: it continues after the last "
            "complete shard",
        ) from error
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def _delete_cache_files(folder: Path) -> None:
    """Remove the files of a cache; the manifest first, so that what is left never looks whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    sync_to_disk(folder)
    for path in (folder / UNFINISHED, *folder.glob(f"{SHARD_PREFIX}*")):
        path.unlink(missing_ok=True)


def _check_same_inputs(folder: Path, existing: CacheInputs, inputs: CacheInputs) -> None:
    old, new = ({**made_from, **made_from["source"]} for made_from in (existing, inputs))
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


def _claim_empty_or_same_cache(folder: Path, inputs: CacheInputs) -> None:
    """Mark the folder as a cache of these inputs that is not finished.

    Raises:
        UserError: it holds an unfinished cache of other inputs, or other files.
    """
    path = folder / UNFINISHED
    if path.exists():
        _check_same_inputs(folder, parse_json_text(path.read_bytes()), inputs)
        return
    names = {entry.name for entry in folder.iterdir() if not has_temporary_name(entry)} - {LOCK}
    if names:
        raise UserError(
            f"holds other files: {', '.join(sorted(names)[:3])}{' ...' * (len(names) > 3)}",
            where=str(folder),
            remedy="name a new or an empty folder",
        )
    write_json_atomically(path, inputs)


def _keep_only_complete_shards(folder: Path) -> list[ShardEntry]:
    """The complete shards, from the first on; deletes all files of the others."""
    shards: list[ShardEntry] = []
    while (shard := read_shard_entry_if_complete(folder, len(shards))) is not None:
        shards.append(shard)
    complete = {name for shard in shards for name in shard["files"]}
    for leftover in folder.glob(f"{SHARD_PREFIX}*"):
        if leftover.name not in complete:
            leftover.unlink()
    return shards


def _write_and_append_missing_shards(
    folder: Path,
    shards: list[ShardEntry],
    encoder: ChunkEncoder,
    num_processes: int,
    policy: SkipPolicy,
    on_progress: Callable[[CacheProgress], None] | None,
) -> None:
    """Encode the records after the existing shards, and append the new shards to `shards`."""
    started_at = time.monotonic()
    total, resumed = len(encoder.records), sum(shard["documents"] for shard in shards)
    length = choose_records_per_chunk(encoder.records)
    ranges = (range(i, min(i + length, total)) for i in range(resumed, total, length))
    bad_records = _count_stored_bad_records_or_raise(shards, policy)
    documents, tokens, writer = resumed, 0, None
    with closing(encode_chunks_in_order(encoder, ranges, num_processes)) as chunks:
        for chunk in chunks:
            for skipped in chunk.skipped.values():
                bad_records.raise_count_or_ignore_by_policy(skipped, policy, "")
            if writer is not None and not writer.has_room_for(chunk):
                shards.append(writer.finish())
                writer = None
            writer = writer or ShardWriter(folder, len(shards), encoder.dtype)
            writer.append_chunk(chunk)
            documents += len(chunk.index)
            tokens += len(chunk.tokens) // encoder.dtype.itemsize
            if on_progress is not None:
                elapsed_seconds = time.monotonic() - started_at
                on_progress(CacheProgress(documents, total, resumed, tokens, elapsed_seconds))
    if writer is not None:
        shards.append(writer.finish())


def _count_stored_bad_records_or_raise(
    shards: list[ShardEntry], policy: SkipPolicy
) -> BadRecordCounter:
    """A counter that starts with the bad records of the existing shards."""
    counted = ("damaged",) if policy.max_bad is None else ("damaged", "empty")
    bad_records = BadRecordCounter(policy.max_bad)
    bad_records.total = sum(shard[name] for shard in shards for name in counted)
    # without a limit, none is allowed
    if bad_records.total > (policy.max_bad or 0):
        raise too_many_bad_records_error(bad_records.total, policy.max_bad or 0, None)
    return bad_records


def _check_any_tokens(folder: Path, shards: Sequence[ShardEntry]) -> None:
    if not any(shard["tokens"] for shard in shards):
        documents = sum(shard["documents"] for shard in shards)
        raise UserError(
            f"there is no text in any of the {documents} documents",
            where=str(folder),
            remedy="check the text column (training.text_column)",
        )


def _check_records_unchanged_since_start(
    folder: Path, shards: Sequence[ShardEntry], inputs: CacheInputs
) -> None:
    """Check that the records written are those that `inputs` were made from."""
    hashes = [memory_map_record_hashes(folder, number) for number in range(len(shards))]
    first_documents = first_document_indices(shards)

    def look_up_stored_hash(index: int) -> int:
        number = bisect_right(first_documents, index) - 1
        return int(hashes[number][index - first_documents[number]])

    if fingerprint_from_sample(inputs["documents"], look_up_stored_hash) != inputs["fingerprint"]:
        raise UserError(
            "the documents changed while they were tokenized",
            where=str(folder),
            remedy="prepare them again with --overwrite once nothing writes to them any more",
        )


def _write_manifest_and_delete_inputs_file(
    folder: Path, shards: list[ShardEntry], inputs: CacheInputs, dtype: np.dtype
) -> None:
    """Mark the cache as finished."""

    def total(count: Literal["tokens", "bytes", "empty", "damaged"]) -> int:
        return sum(shard[count] for shard in shards)

    manifest: Manifest = {
        **inputs,
        "dtype": dtype.name,
        "targets": any(name.endswith(f".{TARGETS}") for shard in shards for name in shard["files"]),
        "tokens": total("tokens"),
        "bytes": total("bytes"),
        "empty": total("empty"),
        "damaged": total("damaged"),
        "shards": shards,
    }
    write_json_atomically(folder / MANIFEST, manifest)
    (folder / UNFINISHED).unlink()
