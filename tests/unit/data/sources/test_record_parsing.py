"""What a record must be, and what is said of one that is not."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flame_accel.config.errors import UserError
from tests.helpers.record_files import CHAT, line, read, records

BAD_LINES = {
    "not JSON": (b'{"text": b}', "damaged", r"not JSON: Expecting value at column 10"),
    "nested": (b"[" * 50, "damaged", "not JSON"),
    "number": (b'{"a": ' + b"9" * 5000 + b"}", "damaged", "JSON that cannot be read: .*digits"),
    "not an object": (b'"b"', "damaged", "a record must be an object with named columns, not str"),
    "not UTF-8": (b'{"text": "\xff"}', "damaged", r"not UTF-8 at byte 10 \(b'\\xff'\)"),
    "surrogate in bytes": (b'{"text": "\xed\xa0\x80"}', "damaged", "not UTF-8 at byte 10"),
    "half a pair": (b'{"text": "ab\\ud800"}', "damaged", "half a surrogate pair at character 2"),
    "no column": (b'{"title": 1}', "damaged", "no column 'text' or .*; there are: title"),
    "a number": (b'{"text": 5}', "damaged", "column 'text' holds int, not text"),
    "null": (b'{"text": null}', "empty", "no text in column 'text'"),
    "empty": (b'{"text": ""}', "empty", "no text"),
    "no messages": (b'{"messages": []}', "empty", "no text in column 'messages'"),
    "long": (b'{"text": "' + b"x" * 9000 + b'"}', "damaged", r"9012 bytes, more than .* = 6000"),
    "strings": (b'{"messages": ["a"]}', "damaged", "not a conversation: str instead of an object"),
    "other keys": (b'{"messages": [{"from": 1}]}', "damaged", "no role and no content, but from"),
    "content": (b'{"messages": [{"role": "user", "content": 5}]}', "damaged", "content of type in"),
    "role": (b'{"messages": [{"role": 5, "content": ""}]}', "damaged", "role of type int"),
    "half in chat": (
        b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
        "damaged",
        "column 'messages' holds half a surrogate pair$",
    ),
}


@pytest.mark.parametrize(("data", "why", "what"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_skipped_and_named(tmp_path: Path, data: bytes, why: str, what: str) -> None:
    file = tmp_path / "a.jsonl"
    good = line({"text": "a"})
    file.write_bytes(good + b"\n" + data + b"\n" + good)
    first, bad, last = records(file, max_bytes=6000)
    assert first == last == "a"
    assert (bad.why, bad.where) == (why, f"{file}, line 3")
    with pytest.raises(AssertionError, match=what):
        raise AssertionError(bad.what)
    bad, _ = records(file, position=len(good), max_bytes=6000)
    assert bad.where == f"{file}, byte {len(good) + 1}"


def test_the_first_record_decides_the_form_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for record, what in {
        '{"title": 1, "body": 2}': r"line 2: no column 'text' .*: title, body\n.*--tr",
        '{"text": 5}': "line 2: column 'text' holds int, not text",
        '{"text": [5]}': "line 2: column 'text' holds a list that is not a conversation",
    }.items():
        file.write_text(f"\n{record}\n")
        with pytest.raises(UserError, match=what):
            read(file)
    file.write_text('[{"title": "a"}]')
    with pytest.raises(UserError, match=r"element 0: .* there are: title"):
        read(file)
    for skipped in ("5", '{"text": null}', '{"text": "\\ud800"}', "{"):
        file.write_text(f'{skipped}\n{{"text": "a"}}\n')
        assert records(file)[1] == "a"


def test_the_columns_are_text_then_content_then_messages(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    everything = {"messages": CHAT, "content": "c", "text": "t", "mine": "m"}
    file.write_bytes(line(everything))
    assert records(file, column="mine", max_bytes=999) == ["m"]
    for name in ("text", "content", "messages"):
        file.write_bytes(line(everything))
        assert records(file, max_bytes=999) == [everything.pop(name)]


def test_text_of_the_greatest_length_is_kept(tmp_path: Path) -> None:
    text = "\u00e9" * 30
    values = [text, text + "x"]
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps([{"text": value} for value in values]))
    for name in ("a.parquet", "a.json"):
        kept, bad = records(tmp_path / name, max_bytes=60)
        assert (kept, bad.what[:8]) == (text, "61 bytes")
    (tmp_path / "a.txt").write_text(values[0])
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(values[1].encode()))
    assert records(tmp_path / "a.txt") == [text]
    assert records(tmp_path / "b.txt.gz")[0].what.startswith("61 bytes")
