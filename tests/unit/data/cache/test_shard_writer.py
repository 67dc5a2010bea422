"""A shard holds its targets, and an incomplete one is written again."""

from pathlib import Path

from flame_accel.data.cache import file_format
from flame_accel.data.cache.cache_writer import write_cache_unless_finished
from flame_accel.data.cache.file_format import MANIFEST, UNFINISHED
from flame_accel.files import write_json_atomically
from tests.helpers.small_caches import (
    ORIGIN,
    ByteEncoder,
    RecordList,
    make_records,
    open_token_cache,
    read_files,
    same_document,
)


def test_conversations_keep_their_targets(tmp_path: Path):
    records = RecordList(
        [{"role": "user", "content": f"why {i}?"}, {"role": "assistant", "content": "so" * i}]
        for i in range(1, 150)
    )
    # texts before and between them, which have none
    records[0] = records[70] = "a text"
    write_cache_unless_finished(records, ByteEncoder(), tmp_path / "one", ORIGIN)
    write_cache_unless_finished(records, ByteEncoder(), tmp_path / "two", ORIGIN, num_processes=2)
    assert read_files(tmp_path / "one") == read_files(tmp_path / "two")
    documents = open_token_cache(tmp_path / "one")
    assert file_format.read_manifest(tmp_path / "one")["targets"]
    for found, record in zip(documents, records, strict=True):
        assert same_document(found, ByteEncoder().encode(record))
    assert documents.read_with_num_text_bytes(1).num_text_bytes == len("why 2?soso")


def test_a_shard_that_an_interruption_damaged_is_made_again(cache: Path):
    expected = read_files(cache)
    # what is left when the power fails before the manifest is written
    made_from = file_format.read_manifest(cache)
    names = ("format", "tokenizer", "add_bos", "documents", "fingerprint", "source")
    write_json_atomically(cache / UNFINISHED, {name: made_from[name] for name in names})
    (cache / MANIFEST).unlink()
    (cache / "shard-00001.tokens").write_bytes(b"")
    write_cache_unless_finished(make_records(), ByteEncoder(), cache, ORIGIN)
    assert read_files(cache) == expected
