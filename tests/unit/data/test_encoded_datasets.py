"""Datasets with an encoder: documents in order, samples of them, and the sides of a split."""

from itertools import islice

import numpy as np
import pytest

from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.encoded_datasets import (
    EncodedTable,
    IndexedDataset,
    SequentialDataset,
    restrict_encode_to_side,
)
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import load_tokenizer
from tests.helpers.fake_shards import FakeShards, encode

EOS = 256
BYTE = load_tokenizer("byte", False)
TEXTS = [f"text {i}" for i in range(200)]


class Lines(list[str]):
    name = "lines"
    sampled_records_fingerprint = "f"


def encode_bytes(record: Record | Skipped) -> Document | Skipped:
    if isinstance(record, Skipped):
        return record
    assert isinstance(record, str)
    return Document(np.frombuffer(record.encode(), np.uint8))


def dataset_of(texts: list[str], held_out: HeldOut | None = None) -> IndexedDataset:
    documents = EncodedTable(Lines(texts), restrict_encode_to_side(encode_bytes, held_out))
    return IndexedDataset(documents, held_out, conversations=False, storage_description="a table")


def text_of(document: Document | Skipped) -> str:
    assert isinstance(document, Document)
    return document.tokens.tobytes().decode()


def test_an_encoded_table_has_the_places_of_what_it_skips() -> None:
    table = EncodedTable(Lines(["a", ""]), Encoder(BYTE, add_bos=False))
    assert (len(table), table.name, table.sampled_records_fingerprint) == (2, "lines", "f")
    document = table[0]
    assert isinstance(document, Document) and document.tokens.tolist() == [97, EOS]
    assert table[1] == Skipped("empty", "lines, row 1", "a text without characters")


def test_indexed_documents_come_in_order_with_the_sizes_of_their_texts() -> None:
    found = list(dataset_of(["a", "na\u00efve"]).read_in_order())
    assert [(text_of(document), size) for document, size in found] == [("a", 1), ("na\u00efve", 6)]


def test_a_sample_of_indexed_documents_is_spread_evenly() -> None:
    dataset = dataset_of(TEXTS)
    sample = [text_of(document) for document, _ in dataset.read_in_order(table_sample_size=4)]
    assert sample == [TEXTS[i] for i in (0, 50, 100, 150)]
    assert [text_of(document) for document, _ in dataset.read_in_order()] == TEXTS


def test_documents_in_sequence_are_read_shard_after_shard() -> None:
    dataset = SequentialDataset(FakeShards([3, 2], {1: Skipped("damaged")}), encode, None)
    found = [
        document.tokens.tolist() if isinstance(document, Document) else document.why
        for document, _ in dataset.read_in_order()
    ]
    assert found == [[0], "damaged", [2], [100], [101]]
    assert len(list(islice(dataset.read_in_order(table_sample_size=2), 9))) == 5
    assert (dataset.num_records, dataset.num_tokens, dataset.conversations) == (None, None, False)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_sides_of_a_split_share_out_the_documents(share: float) -> None:
    kept = {
        side: [
            text_of(document)
            for document, _ in dataset_of(TEXTS, HeldOut(share, side)).read_in_order()
            if isinstance(document, Document)
        ]
        for side in ("training", "evaluation")
    }
    assert sorted(kept["training"] + kept["evaluation"]) == sorted(TEXTS)
    assert abs(len(kept["evaluation"]) - 200 * share) <= 35


def test_a_dataset_says_its_size_and_what_is_held_out() -> None:
    assert str(dataset_of(["a"])) == "lines, 1 document"
    assert str(dataset_of(TEXTS, HeldOut(0.05, "training"))) == (
        "lines, 200 documents, 5.00% of them held out"
    )
    stream = SequentialDataset(FakeShards([1, 1]), encode, None)
    assert (str(stream), stream.storage_description) == ("fake, 2 shards", "a stream of 2 shards")
    assert (
        SequentialDataset(FakeShards([1]), encode, None).storage_description
        == "a stream of one shard"
    )
