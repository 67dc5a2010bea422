"""The byte-level tokenizer gives any text back; bos and eos follow the policy."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flame_accel.config.errors import UserError
from flame_accel.data.tokens.tokenizer import (
    BYTE_TOKENIZER_FOLDER,
    DocumentEncoder,
    build_byte_tokenizer,
    load_tokenizer,
    resolve_add_bos,
    tokenizer_identity,
    vocabulary_size,
    write_byte_tokenizer,
)

BYTE = load_tokenizer("byte", False)


def with_bos(*, inserted: bool) -> PreTrainedTokenizerFast:
    backend = build_byte_tokenizer()
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    if inserted:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 258)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>"
    )


def encode(text: str, tokenizer: PreTrainedTokenizerBase = BYTE, *, add_bos: bool) -> list[int]:
    return DocumentEncoder([text], tokenizer, add_bos=add_bos)(0).tolist()


@given(st.text(max_size=200))
@example(" leading and trailing \t\r\n\n ")
@example("\x00\x1f\x7f\x85\u200b\u2028\ufeff")
@example("\U0001f469\u200d\U0001f680 na\u00efve \u4e16\u754c")
@example("don't , merge . these !")
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_from_its_bytes(text: str) -> None:
    ids = BYTE(text, add_special_tokens=False)["input_ids"]
    assert ids == list(text.encode("utf-8"))
    assert BYTE.decode(ids) == text


def test_the_shipped_files_are_those_that_the_function_writes(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    shipped = {file.name: file.read_text("utf-8") for file in BYTE_TOKENIZER_FOLDER.iterdir()}
    assert {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()} == shipped


def test_a_saved_copy_loads_without_this_package(tmp_path: Path) -> None:
    BYTE.save_pretrained(tmp_path)
    script = (
        "import sys; from transformers import AutoTokenizer;"
        f"t = AutoTokenizer.from_pretrained({str(tmp_path)!r});"
        "ids = t('a\\n\\u00e9 ')['input_ids'];"
        "print(ids, t.decode(ids) == 'a\\n\\u00e9 ', t.eos_token_id, t.pad_token_id, len(t));"
        "assert not [name for name in sys.modules if name.startswith('flame_accel')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[97, 10, 195, 169, 32] True 256 257 258"


def test_the_vocabulary_covers_every_id() -> None:
    assert vocabulary_size(BYTE) == 258
    assert vocabulary_size(with_bos(inserted=False)) == 259


@pytest.mark.parametrize(
    ("inserted", "policy", "expected"),
    [
        (True, "auto", True),
        (False, "auto", False),
        (True, "never", False),
        (False, "always", True),
    ],
)
def test_bos_follows_the_policy(
    inserted: bool, policy: Literal["auto", "always", "never"], expected: bool
) -> None:
    tokenizer = with_bos(inserted=inserted)
    add_bos = resolve_add_bos(tokenizer, policy)
    assert add_bos is expected
    assert encode("ab", tokenizer, add_bos=add_bos) == [258] * expected + [97, 98, 256]


def test_a_tokenizer_without_bos_never_adds_one() -> None:
    assert resolve_add_bos(BYTE, "auto") is False
    with pytest.raises(UserError, match=r"training\.add_bos: .* no bos token"):
        resolve_add_bos(BYTE, "always")


def test_a_document_ends_with_eos_and_an_empty_one_is_nothing() -> None:
    assert encode("hi", add_bos=False) == [104, 105, 256]
    assert encode("", add_bos=False) == []


def test_truncation_in_the_tokenizers_files_drops_no_text() -> None:
    backend = build_byte_tokenizer()
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=8)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    assert len(encode("a long text", tokenizer, add_bos=False)) == 12


def test_the_identity_is_what_the_tokenizer_does(tmp_path: Path) -> None:
    BYTE.save_pretrained(tmp_path)
    assert tokenizer_identity(load_tokenizer(str(tmp_path), False)) == tokenizer_identity(BYTE)
    others = {tokenizer_identity(with_bos(inserted=inserted)) for inserted in (True, False)}
    assert tokenizer_identity(BYTE) not in others


@pytest.mark.parametrize("name", ["missing", "empty", "half"])
def test_what_is_no_tokenizer_is_named(tmp_path: Path, name: str) -> None:
    if name != "missing":
        (tmp_path / name).mkdir()
    if name == "half":
        (tmp_path / name / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=f"no tokenizer at .*{name}"):
        load_tokenizer(str(tmp_path / name), False)


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=build_byte_tokenizer()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r'no eos token.*\n.*"eos_token"'):
        load_tokenizer(str(tmp_path), False)
