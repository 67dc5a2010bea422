"""Whatever is wrong with a JSON text is one kind of error."""

import json

import pytest

from flame_accel.json_text import parse_json_text


def test_texts_and_bytes_in_utf_8_are_parsed():
    assert parse_json_text('{"a": [1, "\u00e9"]}') == {"a": [1, "\u00e9"]}
    assert parse_json_text('"\u00e9"'.encode()) == "\u00e9"


@pytest.mark.parametrize(
    "text",
    ['{"a": ', b'{"a": "\xff"}', "[" * 100_000, "9" * 10_000],
    ids=["cut", "no UTF-8", "nested", "too long a number"],
)
def test_every_other_text_is_the_same_error(text):
    with pytest.raises(json.JSONDecodeError):
        parse_json_text(text)
