"""Prompts are encoded; what has no tokens is refused with its place."""

import pytest

from flame_accel.config import UserError
from flame_accel.data import load_tokenizer
from flame_accel.evaluation.prompts import encode_nonempty_prompt_or_raise
from flame_accel.prompt_files import Prompt

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if messages[-1]['role'] == 'odd' %}{{ raise_exception('no odd roles') }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def encode(content: object, *, template: str | None = None, chat: bool = False) -> list[int]:
    tokenizer = load_tokenizer("byte", False)
    tokenizer.chat_template = template
    return encode_nonempty_prompt_or_raise(
        tokenizer, Prompt(content=content, where="here"), text_is_user_message=chat
    )


def test_texts_and_conversations_are_encoded():
    text = "<user>hi<assistant>"
    assert encode("hi") == list(b"hi")
    assert encode("hi", template=TEMPLATE) == list(b"hi")
    assert encode("hi", template=TEMPLATE, chat=True) == list(text.encode())
    messages = [{"role": "user", "content": "hi"}]
    assert encode(messages, template=TEMPLATE) == list(text.encode())


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("hi", {"chat": True}, "no chat template"),
        ([{"role": "user", "content": "hi"}], {}, "no chat template"),
        ([{"role": "odd", "content": "hi"}], {"template": TEMPLATE}, "no odd roles"),
        ("", {}, "the prompt is empty"),
        ("", {"chat": True, "template": TEMPLATE}, "the prompt is empty"),
    ],
)
def test_what_cannot_be_encoded_is_refused(content, options, message):
    with pytest.raises(UserError, match=f"here: .*{message}"):
        encode(content, **options)
