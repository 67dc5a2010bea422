"""The bytes do not depend on the processes; skipped records say where they are."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cache.cache_writer import write_cache_unless_finished
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.sources.record_hashes import fingerprint_from_sample
from tests.helpers.small_caches import (
    ORIGIN,
    ByteEncoder,
    hash_of_record,
    make_records,
    open_token_cache,
    read_files,
)


def test_any_number_of_processes_writes_the_same_bytes(cache: Path, tmp_path: Path):
    expected = read_files(cache)
    assert len([name for name in expected if name.endswith(".tokens")]) > 2
    assert max(map(len, expected.values())) <= 50_000
    for processes in (2, 4):
        folder = tmp_path / str(processes)
        assert write_cache_unless_finished(
            make_records(), ByteEncoder(), folder, ORIGIN, num_processes=processes
        )
        assert read_files(folder) == expected


def test_a_killed_worker_is_reported(tmp_path: Path):
    class Killed(ByteEncoder):
        def encode_many(self, records: Sequence[Record | Skipped]) -> list[Document | Skipped]:
            os.kill(os.getpid(), signal.SIGKILL)
            return []

    with pytest.raises(UserError, match="memory ran out"):
        write_cache_unless_finished(
            make_records(), Killed(), tmp_path / "c", ORIGIN, num_processes=2
        )


def test_what_the_encoder_refuses_says_which_record(tmp_path: Path):
    class Picky(ByteEncoder):
        def encode(self, record: Record | Skipped) -> Document | Skipped:
            refused = isinstance(record, str) and record.startswith("123 ")
            return Skipped("damaged", what="no") if refused else super().encode(record)

    policy = SkipPolicy(9)
    write_cache_unless_finished(make_records(), Picky(), tmp_path / "c", ORIGIN, policy=policy)
    documents = open_token_cache(tmp_path / "c")
    assert documents[123] == Skipped("damaged", "texts, record 123", "no")
    # the source has a text there
    texts = make_records()
    assert documents.sampled_records_fingerprint == fingerprint_from_sample(
        len(texts), lambda i: hash_of_record(texts[i])
    )
