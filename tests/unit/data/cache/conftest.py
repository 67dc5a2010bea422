"""Fixtures: a token cache of several shards with several chunks each."""

from pathlib import Path

import pytest

from flame_accel.data.cache import chunk_encoder, shard_writer, token_cache
from flame_accel.data.cache.cache_writer import write_cache_unless_finished
from tests.helpers.small_caches import ORIGIN, ByteEncoder, make_records


@pytest.fixture(autouse=True)
def small_chunks_and_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of several chunks each."""
    monkeypatch.setattr(chunk_encoder, "CHUNK_BYTES", 3000)
    monkeypatch.setattr(chunk_encoder, "BATCH_BYTES", 1000)
    monkeypatch.setattr(shard_writer, "MAX_SHARD_BYTES", 50_000)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache_unless_finished(make_records(), ByteEncoder(), tmp_path / "cache", ORIGIN)
    return tmp_path / "cache"


@pytest.fixture
def large(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is too large to be verified at once."""
    monkeypatch.setattr(token_cache, "MAX_VERIFIED_BYTES", 0)
    return cache
