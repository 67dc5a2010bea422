"""Slices of a text have the tokens of the text, or the text is not cut."""

import json
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from flame_accel.data.documents import Document
from flame_accel.data.tokens import text_slicing
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.text_slicing import (
    SPACE,
    WORD_PATTERNS,
    slice_text_at_spaces,
    space_at_cuts_if_cuttable,
)

END = "</s>"
FRAGMENTS = [
    *[
        "a",
        "The",
        "don't",
        "it's",
        "'S",
        "I'LL",
        "x1",
        "42",
        "1234",
        "na\u00efve",
        "e\u0301",
        "\u0301",
    ],
    *[" ", "  ", "   ", "\n", "\n\n", " \n", "\t", "\r\n", "\u00a0", "\u3000"],
    *[".", "...", " (", ")", "/", SPACE, "\u4e16\u754c", "\U0001f642", END, "<x>", " b c", " d"],
    *["a <x>", "b </s>", "c  "],
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join)
CORPUS = [
    "The naive fox doesn't eat the 12 foxes; it's what they'll do (x1 = 42)\n\n" * 3,
    "def f(a, b):\n    return a  # don't touch a b c d\n",
    "\u4e16\u754c e\u0301 na\u00efve\u00a0a\t\tb   c",
]


def train(pre_tokenizer: Any, normalizer: Any = None, **options: Any) -> Tokenizer:
    """A BPE tokenizer that has merged what it could."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), SPACE]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[END, "<x>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_tokenizer(pattern: str, normalizer: Any = None) -> Tokenizer:
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return train(pre_tokenizers.Sequence(steps), normalizer)


def sentencepiece_tokenizer(scheme: str | None) -> Tokenizer:
    """One that does not split; None: with the older form, which normalises."""
    space = pre_tokenizers.Metaspace(prepend_scheme=scheme or "always")
    tokenizer = train(space, unk_token=END, fuse_unk=True, byte_fallback=True)
    whole = json.loads(tokenizer.to_str())
    whole["pre_tokenizer"]["split"] = False
    if scheme is None:
        whole["pre_tokenizer"] = None
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        steps = [{"type": "Prepend", "prepend": SPACE}, replace]
        whole["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return Tokenizer.from_str(json.dumps(whole))


SLICEABLE = {
    "gpt2": train(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "qwen": word_tokenizer(WORD_PATTERNS[0], normalizers.NFC()),
    "llama3": word_tokenizer(WORD_PATTERNS[1]),
    "o200k": word_tokenizer(WORD_PATTERNS[2]),
    **{f"metaspace {s}": sentencepiece_tokenizer(s) for s in ("first", "always", "never")},
    "llama2": sentencepiece_tokenizer(None),
}


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_slicing, "SLICE_CHARACTERS", 3)


def encode_all(backend: Tokenizer, texts: list[str]) -> list[int]:
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    return list(chain.from_iterable(encoding.ids for encoding in encodings))


@pytest.mark.parametrize("name", SLICEABLE)
def test_slices_have_the_tokens_of_the_text(name: str, short_slices: None) -> None:
    backend = SLICEABLE[name]
    space = space_at_cuts_if_cuttable(backend)
    assert space is not None

    @given(TEXTS)
    @settings(max_examples=150, deadline=None)
    def check(text: str) -> None:
        assert encode_all(backend, list(slice_text_at_spaces(text, space))) == encode_all(
            backend, [text]
        )

    check()
    assert len(list(slice_text_at_spaces("the quick brown fox", space))) == 4


def test_slices_have_the_wanted_length() -> None:
    text = "word " * 10_000 + "x"
    parts = list(slice_text_at_spaces(text, "keep"))
    assert "".join(parts) == text
    assert all(8192 <= len(part) < 8200 for part in parts[:-1])
    assert list(slice_text_at_spaces("x" * 50_000, "keep")) == ["x" * 50_000]


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_an_encoder_slices_only_long_texts(name: str) -> None:
    backend = SLICEABLE[name]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    texts = ["The fox " * 10_000, "The fox", "don't eat " * 1500]
    documents = Encoder(tokenizer, add_bos=False).encode_many(texts)
    for text, document in zip(texts, documents, strict=True):
        assert isinstance(document, Document)
        assert document.tokens.tolist() == [*encode_all(backend, [text]), tokenizer.eos_token_id]


def copy_with(backend: Tokenizer, **parts: Any) -> Tokenizer:
    """A copy with other parts."""
    copy = Tokenizer.from_str(backend.to_str())
    for name, part in parts.items():
        setattr(copy, name, part)
    return copy


def with_token_across_cut() -> Tokenizer:
    """One with a token that has a space behind a letter."""
    content = json.loads(SLICEABLE["llama2"].to_str())
    content["model"]["vocab"][f"e{SPACE}"] = len(content["model"]["vocab"])
    content["model"]["merges"].append(["e", SPACE])
    return Tokenizer.from_str(json.dumps(content))


def with_added(name: str, content: str, **options: Any) -> Tokenizer:
    copy = copy_with(SLICEABLE[name])
    copy.add_tokens([AddedToken(content, **options)])
    return copy


@pytest.mark.parametrize(
    "backend",
    [
        word_tokenizer(r"\w+ \w+|\s+|\S+"),
        copy_with(SLICEABLE["gpt2"], normalizer=normalizers.Replace(Regex("e t"), "_")),
        copy_with(SLICEABLE["gpt2"], pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        copy_with(SLICEABLE["llama2"], pre_tokenizer=pre_tokenizers.Whitespace()),
        copy_with(SLICEABLE["llama2"], normalizer=normalizers.Lowercase()),
        with_token_across_cut(),
        with_added("gpt2", "fox eats"),
        with_added("gpt2", "<y>", rstrip=True),
        with_added("llama2", "fox"),
        Tokenizer(models.Unigram([("a", 0.0)], unk_id=0)),
        Tokenizer(models.BPE(dropout=0.1)),
    ],
    ids=[
        *["another pattern", "a normaliser", "a prefix", "another splitter", "lower case"],
        *["a token across", "an added token across", "an added token that strips"],
        *["an added word", "no BPE", "at random"],
    ],
)
def test_unknown_tokenizers_get_whole_texts(backend: Tokenizer) -> None:
    assert space_at_cuts_if_cuttable(backend) is None


def test_the_decoder_does_not_matter() -> None:
    assert (
        space_at_cuts_if_cuttable(copy_with(SLICEABLE["gpt2"], decoder=decoders.ByteLevel()))
        == "keep"
    )
