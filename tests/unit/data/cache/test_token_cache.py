"""Reading a token cache: the documents themselves, and an error for anything damaged."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.cache import file_format, token_cache
from flame_accel.data.cache.cache_writer import write_cache_unless_finished
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.sources.record_hashes import fingerprint_from_sample
from tests.helpers.small_caches import (
    EOS,
    ORIGIN,
    ByteEncoder,
    RecordList,
    delete,
    flip_bit,
    hash_of_record,
    make_records,
    open_token_cache,
    same_document,
    truncate,
)


def test_documents_of_a_cache_equal_those_of_the_texts(cache: Path):
    documents, texts = open_token_cache(cache), make_records()
    assert len(documents) == len(texts)
    for found, text in zip(documents, texts, strict=True):
        assert same_document(found, ByteEncoder().encode(text))
    lengths = [0 if isinstance(t, Skipped) else len(t.encode()) for t in texts]
    assert [
        documents.read_with_num_text_bytes(i).num_text_bytes for i in range(len(texts))
    ] == lengths
    tokens = [n + 1 if n else 0 for n in lengths]
    found = [0 if isinstance(d, Skipped) else len(d.tokens) for d in documents]
    assert found == tokens
    assert documents.num_tokens == sum(tokens)
    assert documents.sampled_records_fingerprint == fingerprint_from_sample(
        len(texts), lambda i: hash_of_record(texts[i])
    )
    for index in (-1, len(texts)):
        with pytest.raises(IndexError):
            documents[index]


def test_tokens_are_views_that_stay_valid_after_their_shard_is_closed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(token_cache, "MAX_OPEN_SHARDS", 1)
    documents = open_token_cache(cache)
    kept = [document for document in documents if isinstance(document, Document)]
    texts = [text for text in make_records() if isinstance(text, str)]
    for document, text in zip(kept, texts, strict=True):
        assert not document.tokens.flags.owndata
        assert not document.tokens.flags.writeable
        assert document.tokens.tolist() == [*text.encode(), EOS]


def test_a_cache_can_be_sent_to_another_process(cache: Path):
    documents = open_token_cache(cache)
    assert isinstance(documents[3], Document)
    assert same_document(pickle.loads(pickle.dumps(documents))[3], documents[3])


@pytest.mark.parametrize("side", [True, False])
def test_each_side_of_a_split_has_the_same_documents_as_without_a_cache(cache: Path, side: bool):
    texts = make_records()
    online = HeldOut(0.3, "evaluation" if side else "training")
    documents = open_token_cache(cache, held_out=online)
    found = [
        same_document(d, ByteEncoder().encode(online(t)))
        for d, t in zip(documents, texts, strict=True)
    ]
    assert all(found)
    kept = sum(isinstance(document, Document) for document in documents)
    assert 0.15 < kept / len(texts) < 0.85


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_identity": "other"}, "tokenizer bytes .* the run has tokenizer other"),
        ({"add_bos": True}, "bos not added; the run has .* bos added"),
    ],
    ids=["tokenizer", "bos"],
)
def test_another_tokenizer_is_refused(cache: Path, change: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said) as error:
        open_token_cache(cache, **change)
    assert "prepare" in str(error.value)


@pytest.mark.parametrize("suffix", ["tokens", "index", "info"])
@pytest.mark.parametrize("damage", [flip_bit, truncate, delete])
def test_damage_to_a_small_cache_is_named_when_it_is_opened(
    cache: Path, suffix: str, damage: Callable[[Path, int], None]
):
    damage(cache / f"shard-00001.{suffix}", 100)
    with pytest.raises(UserError, match=rf"shard-00001\.{suffix}") as error:
        open_token_cache(cache)
    assert "prepare" in str(error.value)


@pytest.mark.parametrize("suffix", ["tokens", "index", "info"])
def test_a_file_that_is_cut_is_named_however_large_the_cache(large: Path, suffix: str):
    truncate(large / f"shard-00001.{suffix}", -1)
    with pytest.raises(UserError, match=rf"shard-00001\.{suffix} has .* bytes, not"):
        open_token_cache(large)


def test_a_flipped_token_is_named_when_its_document_is_read(large: Path):
    documents = open_token_cache(large)
    first = documents._first_documents[1]
    flip_bit(large / "shard-00001.tokens", 0)
    with pytest.raises(UserError, match=rf"document {first} in shard-00001\.tokens .*CRC-32"):
        documents[first]
    assert isinstance(documents[first + 1], Document)


@pytest.mark.parametrize("byte", range(file_format.INDEX_DTYPE.itemsize))
def test_a_flipped_index_is_named_when_its_document_is_read(large: Path, byte: int):
    documents = open_token_cache(large, held_out=HeldOut(0.5, "evaluation"))
    first = documents._first_documents[1]
    kept = next(i for i in range(first, 300) if isinstance(documents[i], Document))
    flip_bit(large / "shard-00001.index", (kept - first) * file_format.INDEX_DTYPE.itemsize + byte)
    said = rf"document {kept} in .*shard-00001\.(index|tokens)"
    with pytest.raises(UserError, match=said):
        documents[kept]
    assert isinstance(documents[kept + 1], Document | Skipped)


def test_a_flipped_target_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_cache, "MAX_VERIFIED_BYTES", 0)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_cache_unless_finished(RecordList([said, said]), ByteEncoder(), tmp_path / "c", ORIGIN)
    flip_bit(tmp_path / "c" / "shard-00000.targets", 2)
    documents = open_token_cache(tmp_path / "c")
    assert isinstance(documents[0], Document)
    with pytest.raises(UserError, match=r"document 1 in .*shard-00000\.targets"):
        documents[1]
