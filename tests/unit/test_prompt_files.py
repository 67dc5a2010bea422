"""Prompts are read from files; what is none is refused with its place."""

import pytest

from flame_accel.config import UserError
from flame_accel.prompt_files import find_utf8_problem, read_text_or_jsonl_prompts


def test_lines_of_text_are_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text('one\n\n {"prompt": 1}\n', encoding="utf-8")
    prompts = list(read_text_or_jsonl_prompts(file))
    assert [prompt.content for prompt in prompts] == ["one", ' {"prompt": 1}']
    assert prompts[1].where == f"{file}:3"


@pytest.mark.parametrize(("suffix", "line"), [("txt", "{}"), ("jsonl", '{{"prompt": "{}"}}')])
def test_a_prompt_ends_at_a_line_feed_only(suffix, line, tmp_path):
    # JSON escapes control characters, such as a form feed, in a string
    texts = ["one\u2028line\x85next", "two" if suffix == "jsonl" else "two\x0cpage\rword"]
    file = tmp_path / f"prompts.{suffix}"
    file.write_bytes(f"{line.format(texts[0])}\r\n{line.format(texts[1])}\n".encode())
    prompts = list(read_text_or_jsonl_prompts(file))
    assert [prompt.content for prompt in prompts] == texts
    assert prompts[1].where == f"{file}:2"


def test_records_of_jsonl_are_texts_or_conversations(tmp_path):
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "hi"}]
    file.write_text('{"prompt": "one"}\n{"messages": [{"role": "user", "content": "hi"}]}\n')
    prompts = list(read_text_or_jsonl_prompts(file))
    assert [prompt.record for prompt in prompts] == [{"prompt": "one"}, {"messages": messages}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is no JSON"),
        ('{"prompt": ""}', "the prompt is empty"),
        (r'{"prompt": "a\ud800"}', "is not UTF-8"),
        ("[]", "neither a prompt nor messages"),
        ('{"prompt": 3}', "neither a prompt nor messages"),
        ('{"messages": []}', "neither a prompt nor messages"),
        ('{"messages": [{"role": "user"}]}', "neither a prompt nor messages"),
    ],
)
def test_a_record_that_is_no_prompt_is_named(line, message, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "one"}}\n{line}\n')
    with pytest.raises(UserError, match=rf"prompts\.jsonl:2: .*{message}"):
        list(read_text_or_jsonl_prompts(file))


def test_a_file_without_prompts_or_that_is_missing_is_refused(tmp_path):
    (tmp_path / "empty").write_text(" \n\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (("empty", "no prompt"), ("none", "read"), ("binary", "cannot be read")):
        with pytest.raises(UserError, match=message):
            list(read_text_or_jsonl_prompts(tmp_path / name))


def test_a_text_that_utf8_does_not_have_is_found():
    assert find_utf8_problem("a\u2028\U0001f600") is None
    assert find_utf8_problem("a\udcff") == r"is not UTF-8: it contains '\udcff'"
