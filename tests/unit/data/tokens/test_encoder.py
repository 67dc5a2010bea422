"""Laws of the encoder: texts are bos, the tokenizer's ids and eos, alone or in a batch."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BatchEncoding,
    PreTrainedTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from flame_accel.config.errors import UserError
from flame_accel.data.documents import AnsweredText, Document, Record, Skipped
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import EOS, PAD, build_byte_tokenizer, load_tokenizer

BYTE = load_tokenizer("byte", False)
BOS_ID, EOS_ID = 258, 256


def with_bos() -> PreTrainedTokenizerFast:
    """The byte tokenizer with a bos that it puts before every text by itself."""
    backend = build_byte_tokenizer()
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS_ID)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=EOS)


class Letters(PreTrainedTokenizer):
    """A tokenizer written in Python: a token for each small letter, nothing for the rest."""

    def __init__(self, **options: Any) -> None:
        self._ids = {chr(97 + i): i for i in range(26)}
        super().__init__(eos_token=EOS, **options)

    @property
    def vocab_size(self) -> int:
        return 26

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return [letter for letter in text if letter in self._ids]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return chr(97 + index)


class Upper(PreTrainedTokenizerFast):
    """A tokenizer that does something to a text before the library has it."""

    def _encode_plus(self, text: str, *arguments: Any, **options: Any) -> BatchEncoding:
        return super()._encode_plus(text.upper(), *arguments, **options)


def tokens(
    record: Record, tokenizer: PreTrainedTokenizerBase = BYTE, *, add_bos: bool = False
) -> list[int]:
    document = Encoder(tokenizer, add_bos=add_bos)(record)
    assert isinstance(document, Document)
    assert document.tokens.dtype == np.int32
    assert document.targets is None
    return document.tokens.tolist()


@given(st.text(min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_a_text_is_its_bytes_and_eos(text: str) -> None:
    assert tokens(text) == [*text.encode(), EOS_ID]


@pytest.mark.parametrize("add_bos", [True, False])
def test_bos_comes_from_the_policy_and_never_from_the_tokenizer(add_bos: bool) -> None:
    tokenizer = with_bos()
    assert tokenizer("ab")["input_ids"] == [BOS_ID, 97, 98]
    assert tokens("ab", tokenizer, add_bos=add_bos) == [BOS_ID] * add_bos + [97, 98, EOS_ID]


def test_a_special_token_in_a_text_is_what_the_tokenizer_takes_it_for(tmp_path: Path) -> None:
    text = f"a{EOS}"
    assert tokens(text, with_bos()) == [97, EOS_ID, EOS_ID]
    BYTE.save_pretrained(tmp_path)
    for tokenizer in (BYTE, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokens(text, tokenizer) == [*text.encode(), EOS_ID]


def test_truncation_in_the_tokenizers_files_drops_no_text() -> None:
    backend = build_byte_tokenizer()
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=8)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS)
    assert len(tokens("a long text", tokenizer)) == 12


@pytest.mark.parametrize(
    ("record", "tokenizer", "expected"),
    [
        ("", BYTE, Skipped("empty", "", "a text without characters")),
        ("123", Letters(), Skipped("empty", "", "a text of which the tokenizer leaves nothing")),
        ("a\ud800b", BYTE, Skipped("damaged", "", "not Unicode: character 1 is a surrogate")),
        (Skipped("damaged", "file.txt"), BYTE, Skipped("damaged", "file.txt")),
    ],
    ids=["empty", "nothing left", "half a character", "skipped already"],
)
def test_what_gives_no_tokens_is_skipped(
    record: Record | Skipped, tokenizer: PreTrainedTokenizerBase, expected: Skipped
) -> None:
    assert Encoder(tokenizer, add_bos=False)(record) == expected


def test_a_tokenizer_written_in_python_encodes() -> None:
    assert tokens("ab c", Letters()) == [0, 1, 2, Letters().eos_token_id]


def test_what_a_tokenizer_adds_in_python_is_kept() -> None:
    tokenizer = Upper(tokenizer_object=build_byte_tokenizer(), eos_token=EOS)
    assert tokens("ab", tokenizer) == [65, 66, EOS_ID]


RECORDS: list[Record | Skipped] = [
    "one",
    "",
    "zw\u00f6lf",
    Skipped("held out"),
    "a\udfff",
    "x" * 500,
    f"{EOS} {PAD}",
]


def listed(documents: list[Document | Skipped]) -> list[Any]:
    return [d if isinstance(d, Skipped) else d.tokens.tolist() for d in documents]


@pytest.mark.parametrize(
    "tokenizer", [BYTE, with_bos(), Letters()], ids=["byte", "inserts bos", "python"]
)
def test_a_batch_is_its_records(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(tokenizer, add_bos=tokenizer.bos_token_id is not None)
    assert listed(encoder.encode_many(RECORDS)) == listed([encoder(r) for r in RECORDS])
    assert encoder.encode_many([]) == []


def test_a_pickled_encoder_a_thread_and_a_forked_process_do_the_same() -> None:
    encoder = Encoder(BYTE, add_bos=False)
    expected = listed(encoder.encode_many(RECORDS))
    assert listed(pickle.loads(pickle.dumps(encoder)).encode_many(RECORDS)) == expected
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(encoder.encode_many, [RECORDS] * 20))
    assert [listed(documents) for documents in many] == [expected] * 20
    child = os.fork()
    if child == 0:
        os._exit(listed(encoder.encode_many(RECORDS)) != expected)
    assert os.waitpid(child, 0)[1] == 0


def test_the_library_counts_as_documented() -> None:
    # `encode_batch_fast` leaves offsets out and nothing else
    backend: Tokenizer = with_bos().backend_tokenizer
    texts = ["a b", "zw\u00f6lf"]
    fast = backend.encode_batch_fast(texts, add_special_tokens=False)
    assert [e.ids for e in fast] == [
        e.ids for e in backend.encode_batch(texts, add_special_tokens=False)
    ]


def test_tokens_with_a_character_of_an_answer_are_targets() -> None:
    text, answer = "What is it? It is 417.", (18, 21)
    document = Encoder(BYTE, add_bos=False).encode_answered_text(AnsweredText(text, [answer]))
    assert document.targets is not None
    assert bytes(document.tokens[document.targets].tolist()) == b"417"
    assert document.tokens.tolist() == [*text.encode(), 256]
    words = Tokenizer(models.WordLevel({"E": 0, "is 417": 1, "B": 2}, unk_token="E"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"is \d+"), "isolated")
    merged = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="E", bos_token="B")
    document = Encoder(merged, add_bos=True).encode_answered_text(AnsweredText(text, [answer]))
    assert document.targets is not None
    # a token that reaches into the answer from in front of it
    assert document.tokens[document.targets].tolist() == [1]
    assert document.tokens[0] == 2
    assert Encoder(merged, add_bos=True).count_document_tokens(text) == len(document.tokens)


def test_answers_need_a_tokenizer_that_knows_its_characters() -> None:
    with pytest.raises(UserError, match="texts with answers need a tokenizer that tells which"):
        Encoder(Letters(), add_bos=False).encode_answered_text(AnsweredText("ab", [(0, 1)]))
