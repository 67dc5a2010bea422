"""Laws of conversations: tokens as the template writes them, the loss on the assistant's turns."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import BertJapaneseTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Conversation, Document, Skipped
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import EOS, build_byte_tokenizer, load_tokenizer

EOS_ID, BOS_ID, IM_END_ID = 256, 258, 259
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}" + PROMPT
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{%- generation -%}{{ m.content + '<|im_end|>\n' }}{%- endgeneration -%}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}" + PROMPT
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + "
    "' ' + eos_token }}{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
SHOUTS_LAST = "{% for m in messages %}{{ m.content|upper if loop.last else m.content }}{% endfor %}"
THINKS = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif")


def chatty(template: str | dict[str, str], *, eos: str = EOS) -> PreTrainedTokenizerFast:
    """Bytes, with markers as tokens."""
    backend = build_byte_tokenizer()
    markers = ("<s>", "<|im_end|>", "<|im_start|>")
    backend.add_special_tokens([AddedToken(marker, special=True) for marker in markers])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def turns(*contents: str) -> Conversation:
    """User and assistant, one after the other."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def encode(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, add_bos: bool = False
) -> Document:
    document = Encoder(tokenizer, add_bos=add_bos)(conversation)
    assert isinstance(document, Document), document
    assert document.targets is not None
    assert document.tokens.dtype == np.int32 and document.targets.dtype == np.bool_
    assert document.tokens.shape == document.targets.shape
    return document


def said(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[str]:
    """Successive targets as text."""
    tokens, targets = encode(tokenizer, conversation)
    assert targets is not None
    runs = groupby(zip(tokens.tolist(), targets.tolist(), strict=True), key=lambda pair: pair[1])
    return [str(tokenizer.decode([token for token, _ in run])) for target, run in runs if target]


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "content": st.text("ab \n\u00e9\U0001f642'", max_size=12),
        }
    ),
    max_size=5,
).map(lambda messages: [{"role": "user", "content": "hi"}, *messages, *turns("so", "yes")])


@given(MESSAGES)
@settings(max_examples=150, deadline=None)
def test_a_template_says_the_same_with_and_without_generation_markers(
    conversation: Conversation,
) -> None:
    marked, plain = (encode(chatty(t), conversation) for t in (MARKED, CHATML))
    assert marked.tokens.tolist() == plain.tokens.tolist()
    assert marked.targets is not None and plain.targets is not None
    assert marked.targets.tolist() == plain.targets.tolist()


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["plain", "marked"])
def test_the_loss_is_for_the_assistants_turns_with_their_ends(template: str) -> None:
    conversation = [{"role": "system", "content": "be nice"}, *turns("hi", "h\u00e9", "so", "yes")]
    assert said(chatty(template), conversation) == [
        "h\u00e9<|im_end|>\n",
        f"yes<|im_end|>\n{EOS}",
    ]


@given(MESSAGES, st.sampled_from([CHATML, MARKED]))
@settings(max_examples=50, deadline=None)
def test_tokens_are_those_of_transformers(conversation: Conversation, template: str) -> None:
    tokenizer = chatty({"default": template, "tool_use": "{{ 1 }}"})
    expected = tokenizer.apply_chat_template(conversation, return_dict=False)
    assert encode(tokenizer, conversation).tokens.tolist() == [*expected, EOS_ID]


def test_markers_spelled_out_stay_text_for_the_byte_tokenizer() -> None:
    byte = load_tokenizer("byte", False)
    byte.chat_template = LLAMA.replace("{{ bos_token }}", "")
    text = f"[INST] hi [/INST] yes {EOS}"
    assert encode(byte, turns("hi", "yes")).tokens.tolist() == [*text.encode(), EOS_ID]


def test_bos_and_eos_are_not_written_twice() -> None:
    tokens, _ = encode(chatty(LLAMA), turns("hi", "yes"), add_bos=True)
    assert tokens.tolist() == [BOS_ID, *b"[INST] hi [/INST] yes ", EOS_ID]


def test_an_eos_before_the_last_line_break_counts() -> None:
    tokens, targets = encode(chatty(MARKED, eos="<|im_end|>"), turns("hi", "yes"))
    assert targets is not None
    assert tokens[targets].tolist() == [*b"yes", IM_END_ID, 10]


def test_bos_and_eos_are_written_where_the_template_does_not() -> None:
    tokens, targets = encode(chatty(MARKED), turns("hi", "yes"), add_bos=True)
    assert targets is not None
    assert (tokens[0], targets[0]) == (BOS_ID, False)
    assert (tokens[-1], targets[-1]) == (EOS_ID, True)
    tokens, targets = encode(chatty(MARKED), turns("hi", "yes", "and?"))
    assert targets is not None
    assert (tokens[-1], targets[-1]) == (EOS_ID, False)


def test_a_token_that_begins_in_the_prompt_is_no_target() -> None:
    vocabulary = {"u": 0, ":": 1, "h": 2, "i": 3, ":h": 4, "</s>": 5}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "h")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ (':' if m.role == 'assistant' else '') + m.content }}"
        "{% endfor %}{{ ':' if add_generation_prompt else '' }}"
    )
    tokens, targets = encode(tokenizer, turns("u", "hi"))
    assert tokens.tolist() == [0, 4, 3, 5]
    assert targets is not None and targets.tolist() == [False, False, True, True]


def test_what_a_message_has_not_may_be_null() -> None:
    nulls = [{**message, "tool_calls": None, "name": None} for message in turns("hi", "yes")]
    template = CHATML.replace("m.role +", "(m.role if m.name is not defined else 'named') +")
    assert said(chatty(template), nulls) == said(chatty(CHATML), turns("hi", "yes"))


@pytest.mark.parametrize(
    ("conversation", "what"),
    [
        (turns("hi"), "no assistant turn, only user"),
        ([{"from": "human", "value": "hi"}], "message 1 has no role"),
        ([*turns("hi"), {"role": "assistant"}], "message 2 has no content"),
        (["hi"], "message 1 has no role"),
        ([{"role": "system", "content": "x"}, *turns("hi", "yes")], "only user and assistant"),
        ([{"role": "user", "content": 3}, *turns("hi", "yes")], "the chat template refuses it"),
        (turns("hi", "a\ud800"), "is a surrogate"),
    ],
    ids=["no assistant", "no role", "no content", "a string", "refused", "a number", "surrogate"],
)
def test_a_conversation_that_cannot_be_used_is_damaged(conversation: Any, what: str) -> None:
    skipped = Encoder(chatty(LLAMA), add_bos=False)(conversation)
    assert isinstance(skipped, Skipped) and skipped.why == "damaged"
    assert what in skipped.what


def test_an_answer_that_the_template_leaves_out_is_damaged() -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    skipped = Encoder(chatty(template), add_bos=False)(turns("hi", "yes"))
    assert isinstance(skipped, Skipped) and skipped.why == "damaged"


def test_a_conversation_without_messages_is_empty() -> None:
    skipped = Encoder(chatty(CHATML), add_bos=False)([])
    assert isinstance(skipped, Skipped) and skipped.why == "empty"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", r"no chat template\n.*chat_template\.jinja"),
        ("{% for %}", "is not valid"),
        (SHOUTS_LAST, r"does not show where the assistant speaks.*\n.*% generation %"),
        (THINKS, "does not show where the assistant speaks"),
        ("{% set f = '%d' %}{{ strftime_now(f) }}", "asks for the time"),
    ],
    ids=["none", "syntax", "last turn differs", "prompt differs", "clock"],
)
def test_a_template_that_cannot_be_used_is_named(template: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"model\.tokenizer_path: (.|\n)*{message}"):
        Encoder(chatty(template), add_bos=False)(turns("hi", "yes", "hi", "yes"))


def test_markers_serve_templates_whose_beginnings_differ() -> None:
    marked = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}" + (
        "{{ m.content|upper if loop.last else m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert said(chatty(marked), turns("hi", "yes", "so", "no")) == ["yes", f"NO{EOS}"]


def test_the_date_is_the_same_every_day() -> None:
    dated = "{{ strftime_now('%d %b %Y') if strftime_now is defined else '' }}\n" + MARKED
    tokenizer = chatty(dated)
    tokens, _ = encode(tokenizer, turns("hi", "yes"))
    assert str(tokenizer.decode(tokens)).startswith("26 Jul 2024\n<|im_start|>user")


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    tokenizer = BertJapaneseTokenizer(
        tmp_path / "vocab.txt", word_tokenizer_type="basic", eos_token="[SEP]"
    )
    with pytest.raises(UserError, match=r"which characters a token stands for.*\n.*tokenizer\.j"):
        Encoder(tokenizer, add_bos=False)(turns("a", "b"))


def test_texts_and_conversations_share_a_batch() -> None:
    encoder = Encoder(chatty(MARKED), add_bos=True)
    records = ["a", turns("hi", "yes"), "", "b", turns("so", "no")]
    together = encoder.encode_many(records)
    for record, document in zip(records, together, strict=True):
        alone = encoder(record)
        assert type(alone) is type(document)
        if isinstance(alone, Document) and isinstance(document, Document):
            assert alone.tokens.tolist() == document.tokens.tolist()
            assert (alone.targets is None) == (document.targets is None) == isinstance(record, str)


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Threads that interrupt each other all the time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_threads_and_forks_in_the_middle_of_a_rendering_do_the_same(busy_threads: None) -> None:
    encoder = Encoder(chatty(MARKED), add_bos=False)
    conversation = turns(*["x" * 50] * 20)
    expected = encode(chatty(MARKED), conversation).tokens.tolist()

    def matches(_: int) -> bool:
        document = encoder(conversation)
        return isinstance(document, Document) and document.tokens.tolist() == expected

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(matches, range(100)))
    done = threading.Event()
    busy = threading.Thread(target=lambda: [matches(0) for _ in iter(done.is_set, True)])
    busy.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                # what waits for a lock for ever is ended
                signal.alarm(10)
                os._exit(not matches(0))
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        busy.join()
