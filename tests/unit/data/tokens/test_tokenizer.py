"""The byte-level tokenizer gives any text back; bos follows the policy; others are told apart."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, processors
from transformers import PreTrainedTokenizerFast

from flame_accel.config.errors import UserError
from flame_accel.data.tokens.tokenizer import (
    BYTE_TOKENIZER_FOLDER,
    EOS,
    build_byte_tokenizer,
    is_byte_tokenizer,
    load_tokenizer,
    resolve_add_bos,
    tokenizer_identity,
    vocabulary_size,
    write_byte_tokenizer,
)
from tests.helpers.runs import SHORT_RUN

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


@given(st.text(max_size=200))
@example(" leading and trailing \t\r\n\n ")
@example("\x00\x1f\x7f\x85\u200b\u2028\ufeff")
@example("\U0001f469\u200d\U0001f680 na\u00efve \u4e16\u754c")
@example("don't , merge . these !")
@example("<|pad|> is text, and <|endoftext|> is no end")
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
        "print(bytes(t('<|endoftext|>')['input_ids']));"
        "assert not [name for name in sys.modules if name.startswith('flame_accel')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "[97, 10, 195, 169, 32] True 256 257 258",
        "b'<|endoftext|>'",
    ]


def test_the_byte_tokenizer_is_known_again_and_nothing_else_is_taken_for_it(
    tmp_path: Path,
) -> None:
    BYTE.save_pretrained(tmp_path)
    saved = load_tokenizer(str(tmp_path), False)
    assert isinstance(saved, PreTrainedTokenizerFast) and is_byte_tokenizer(saved.backend_tokenizer)
    reads_tokens, with_word, other = (build_byte_tokenizer() for _ in range(3))
    reads_tokens.encode_special_tokens = False
    with_word.add_tokens(["word"])
    other.model = models.BPE(vocab={"a": 0, "b": 1}, merges=[])
    assert not any(is_byte_tokenizer(backend) for backend in (reads_tokens, with_word, other))


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
    assert resolve_add_bos(with_bos(inserted=inserted), policy) is expected


def test_a_tokenizer_without_bos_never_adds_one() -> None:
    assert resolve_add_bos(BYTE, "auto") is False
    with pytest.raises(UserError, match=r"training\.add_bos: .* no bos token"):
        resolve_add_bos(BYTE, "always")


def test_the_identity_is_what_the_tokenizer_does(tmp_path: Path) -> None:
    BYTE.save_pretrained(tmp_path)
    assert tokenizer_identity(load_tokenizer(str(tmp_path), False)) == tokenizer_identity(BYTE)
    others = {tokenizer_identity(with_bos(inserted=inserted)) for inserted in (True, False)}
    assert tokenizer_identity(BYTE) not in others


def test_the_identity_knows_what_special_tokens_in_a_text_are() -> None:
    reads_text = PreTrainedTokenizerFast(
        tokenizer_object=build_byte_tokenizer(), eos_token=EOS, split_special_tokens=True
    )
    reads_token = PreTrainedTokenizerFast(tokenizer_object=build_byte_tokenizer(), eos_token=EOS)
    assert tokenizer_identity(reads_text) != tokenizer_identity(reads_token)


def test_the_identity_has_the_chat_template_where_there_are_conversations(tmp_path: Path) -> None:
    BYTE.save_pretrained(tmp_path)
    chatty = load_tokenizer(str(tmp_path), False)
    chatty.chat_template = "{{ messages[0].content }}"
    assert tokenizer_identity(chatty) == tokenizer_identity(BYTE)
    assert tokenizer_identity(chatty, with_chat_template=True) != tokenizer_identity(
        BYTE, with_chat_template=True
    )


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


@pytest.mark.covers_option("model.tokenizer_path")
def test_a_run_uses_the_named_tokenizer(train_here, flags, tmp_path):
    tokenizer = load_tokenizer("byte", False)
    tokenizer.add_tokens(["abc def "])
    tokenizer.save_pretrained(tmp_path / "mine")
    train_here(flags(**SHORT_RUN, **{"model.tokenizer_path": tmp_path / "mine"}))
    exported = load_tokenizer(str(tmp_path / "run/hf"), False)
    assert len(exported("abc def ")["input_ids"]) == 1
    vocabulary = json.loads((tmp_path / "run/hf/config.json").read_text())["vocab_size"]
    assert vocabulary >= len(tokenizer) > 258


def test_a_tokenizer_file_loads_as_its_folder_does(tmp_path: Path) -> None:
    BYTE.save_pretrained(tmp_path)
    from_file = load_tokenizer(str(tmp_path / "tokenizer.json"), False)
    assert tokenizer_identity(from_file) == tokenizer_identity(BYTE)
    assert from_file.eos_token == EOS


def test_a_tokenizer_file_without_special_tokens_says_what_to_write(tmp_path: Path) -> None:
    BYTE.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config\.json with .*eos_token"):
        load_tokenizer(str(tmp_path / "tokenizer.json"), False)
    (tmp_path / "own.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not called tokenizer\.json"):
        load_tokenizer(str(tmp_path / "own.json"), False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
            "Git LFS pointer",
        ),
        ('{"version": "1.0", "added', "is cut, damaged or not JSON"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    BYTE.save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is .*") as raised:
        load_tokenizer(str(tmp_path), False)
    assert message in str(raised.value)


def test_the_number_tokenizer_reads_and_writes_numbers_and_loads_elsewhere(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("numbers:300", False)
    ids = [7, 299, 0, 12]
    assert tokenizer("7 299 0 12")["input_ids"] == ids
    assert tokenizer.decode(ids) == "7 299 0 12"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (300, 301, 303)
    # a prompt of anything else is read, too
    assert tokenizer("def 300")["input_ids"] == [tokenizer.unk_token_id] * 2
    tokenizer.save_pretrained(tmp_path)
    copy = load_tokenizer(str(tmp_path), False)
    assert tokenizer_identity(copy) == tokenizer_identity(tokenizer)


@pytest.mark.parametrize("name", ["numbers:", "numbers:1", "numbers:x", "numbers:99999999"])
def test_a_wrong_number_of_tokens_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a number of tokens from 2"):
        load_tokenizer(name, False)
