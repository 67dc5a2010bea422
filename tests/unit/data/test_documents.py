"""What is known of a record before it is encoded: the size of its text, and its form."""

import pytest

from flame_accel.data.documents import Record, Skipped, count_utf8_bytes, first_is_conversation

CHAT = [{"role": "user", "content": "\u00e9"}, {"role": "assistant", "content": "ab"}]
CALL = [{"role": "assistant", "content": None}, {"role": "user", "content": [{"type": "image"}]}]


@pytest.mark.parametrize(
    ("record", "size"),
    [("na\u00efve", 6), ("\ud800", 3), ("", 0), (CHAT, 4), (CALL, 0), (Skipped("damaged"), 0)],
)
def test_the_size_is_that_of_the_text_in_utf8(record: Record | Skipped, size: int) -> None:
    assert count_utf8_bytes(record) == size


def test_the_first_record_that_was_not_skipped_tells_the_form() -> None:
    skipped = Skipped("empty")
    assert first_is_conversation([skipped, CHAT, "text"])
    assert not first_is_conversation([skipped, "text", CHAT])
    assert not first_is_conversation([skipped, skipped])


def test_no_more_records_are_read_than_it_takes() -> None:
    records = iter([Skipped("empty"), "text", CHAT])
    assert not first_is_conversation(records)
    assert list(records) == [CHAT]
