"""Records that are skipped are counted, reported, or stop the run, as the policy says."""

import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.cursors import SourceCursor
from flame_accel.data.documents import Skipped
from tests.helpers.table_readers import HELD_OUT, Records, open_reader, read

DAMAGED = Skipped("damaged", "corpus.jsonl:3", "byte 0xff is not UTF-8")


def test_documents_skipped_are_counted_and_the_bad_ones_reported() -> None:
    empty = Skipped("empty", "corpus.jsonl:9", "there is no text")
    records = Records(10, {0: DAMAGED, 1: empty, 2: HELD_OUT, 3: HELD_OUT})
    reported: list[Skipped] = []
    reader = open_reader(records, max_bad=5, reported=reported)
    read(reader, 12)
    reader.peek()
    cursor = reader.cursor
    # the second epoch is complete but for what lies behind the last document
    assert cursor.consumed + cursor.skipped == cursor.position[0] * 10 + cursor.position[1]
    assert cursor.bad == len(reported) >= 2
    assert {DAMAGED, empty} == set(reported)


def test_without_a_limit_only_damaged_records_are_refused() -> None:
    reader = open_reader(Records(10, {0: Skipped("empty", "row 0"), 2: HELD_OUT}))
    read(reader, 30)
    assert reader.cursor.bad == 0
    assert reader.cursor.skipped > 0
    with pytest.raises(UserError) as error:
        read(open_reader(Records(10, {4: DAMAGED})), 10)
    assert (error.value.where, error.value.what) == ("corpus.jsonl:3", "byte 0xff is not UTF-8")
    assert "--training.max_bad_records N" in str(error.value)


@pytest.mark.parametrize("why", ["empty", "damaged"])
def test_a_limit_of_zero_refuses_the_first(why: str) -> None:
    with pytest.raises(UserError, match=f"numbers 0: the document is {why}"):
        read(open_reader(Records(10, {4: Skipped(why)}), max_bad=0), 10)


def test_a_refused_record_stays_under_the_cursor() -> None:
    reader = open_reader(Records(1, {0: DAMAGED}))
    for _ in range(2):
        with pytest.raises(UserError, match="not UTF-8"):
            reader.peek()
        assert reader.cursor == SourceCursor(position=(0, 0))


@pytest.mark.parametrize("other", [Skipped("empty"), HELD_OUT])
def test_data_without_any_text_is_an_error_and_no_endless_loop(other: Skipped) -> None:
    reader = open_reader(Records(30, dict.fromkeys(range(30), other)), lane=2, num_lanes=3)
    with pytest.raises(UserError, match="no text in any of the 30 documents"):
        reader.peek()
