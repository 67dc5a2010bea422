"""Hashes of records and fingerprints of data are the same in every form and version."""

import datasets

from flame_accel.data.sources.file_table import copy_files_to_cached_table
from flame_accel.data.sources.record_hashes import (
    FINGERPRINT_DOCUMENTS,
    fingerprint_from_sample,
    record_hash,
)
from flame_accel.data.sources.record_parsing import RecordColumn
from flame_accel.data.sources.table import Table
from tests.helpers.tables import CONVERSATION, of_dataset, write_lines


def test_fingerprints_are_of_the_content_not_of_the_form(tmp_path):
    texts = [f"text {i}" for i in range(2 * FINGERPRINT_DOCUMENTS)]
    dataset = datasets.Dataset.from_dict({"body": texts})
    file = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    a = Table("a", dataset, "body")
    b = copy_files_to_cached_table([file], RecordColumn(), name="b")
    assert a.sampled_records_fingerprint == b.sampled_records_fingerprint
    assert a.sampled_records_fingerprint == fingerprint_from_sample(
        len(texts), lambda i: record_hash(texts[i])
    )
    assert (
        a.sampled_records_fingerprint
        != Table("a", dataset.select(range(len(texts) - 1)), "body").sampled_records_fingerprint
    )
    assert (
        a.sampled_records_fingerprint
        != of_dataset([texts[1], texts[0], *texts[2:]]).sampled_records_fingerprint
    )


def test_skipped_records_count_as_nothing_in_a_fingerprint():
    hashes = [record_hash("a"), 0, 0]
    expected = fingerprint_from_sample(3, hashes.__getitem__)
    assert of_dataset(["a", None, ""]).sampled_records_fingerprint == expected


def test_hashes_do_not_change_from_one_version_to_the_next():
    # whoever changes them moves documents from one side of the split to the other
    assert record_hash("na\u00efve") == 0xBEF26892EEEB4CDC
    assert record_hash(CONVERSATION) == 0x278BCFFD1DF28014
    reordered = [dict(reversed(message.items())) for message in CONVERSATION]
    assert record_hash(reordered) == record_hash(CONVERSATION)
