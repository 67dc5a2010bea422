"""Long texts in pieces, for tokenizers of which it is known that this changes no token.

On one text the tokenizers library takes about 500 bytes a token, and from 100,000 characters on
less than two thirds of its speed; in pieces it takes neither. Texts are cut between a letter and a
space before a letter. Two kinds of tokenizers have a boundary between tokens there, for which
neither side looks at the other:

- Those that split a text into words by one of the patterns below: none of them matches a space
  behind a letter, or looks back, or looks ahead of a letter (GPT-2, Llama 3, Qwen, o200k).
- Those that write spaces as U+2581 and do not split, as long as no token of their vocabulary has
  one behind a letter, so that no merge crosses the cut (Llama 2, Mistral).

Any other tokenizer is given whole texts.
"""

import json
import re
from collections.abc import Iterator
from string import ascii_letters
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

PIECE_CHARACTERS = 8192
CUT = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")
SPACE = "\u2581"

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
WORDS = (r"\p{N}".join(_CL100K), r"\p{N}{1,3}".join(_CL100K), _O200K)
"""Patterns of words: Qwen 2, Llama 3 (and GPT-4), o200k; that of GPT-2 is built in."""


def space_at_cuts(backend: Tokenizer) -> str | None:
    """What of the space at a cut the next piece begins with: all, or nothing; None: do not cut."""
    model = backend.model
    added = backend.get_added_tokens_decoder().values()
    if not isinstance(model, models.BPE) or model.dropout or any(map(_reaches_cuts, added)):
        return None
    normalizers = _steps(backend.normalizer, "normalizers")
    splits = _steps(backend.pre_tokenizer, "pretokenizers")
    if _is_words(splits) and normalizers in ([], [{"type": "NFC"}]):
        return " "
    if not _keeps_words_apart(backend, model):
        return None
    if not normalizers and len(splits) == 1 and splits[0]["type"] == "Metaspace":
        return " " if splits[0]["replacement"] == SPACE else None
    # here every piece is given a space, as the text is
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return "" if not splits and normalizers == [prepend, replace] else None


def cut(text: str, space: str) -> Iterator[str]:
    """Pieces of a text, each a little longer than `PIECE_CHARACTERS` where there is a place."""
    start = 0
    while found := CUT.search(text, start + PIECE_CHARACTERS):
        yield text[start : found.start()]
        start = found.end() - len(space)
    yield text[start:]


def _steps(component: Any, key: str) -> list[dict[str, Any]]:
    """A normaliser or a pre-tokeniser as the library writes its steps to tokenizer.json."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state.get(key, [state])


def _is_words(splits: list[dict[str, Any]]) -> bool:
    """Whether the splits are those of GPT-2 or one of `WORDS`, and then bytes."""
    *before, last = splits or [{"type": None}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last["use_regex"]:
        return not before
    form = {"type": "Split", "behavior": "Isolated", "invert": False}
    return before in [[{**form, "pattern": {"Regex": pattern}}] for pattern in WORDS]


def _keeps_words_apart(backend: Tokenizer, model: models.BPE) -> bool:
    """Whether no merge puts a letter and the space behind it together, or leaves either unknown."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return (
        not model.ignore_merges
        and model.continuing_subword_prefix is None
        and model.end_of_word_suffix is None
        and vocabulary.keys() >= {SPACE, *ascii_letters}
        and not any(re.search(f"[A-Za-z]{SPACE}", token) for token in vocabulary)
    )


def _reaches_cuts(token: AddedToken) -> bool:
    """Whether an added token could lie across a cut, or next to one."""
    looks_around = token.lstrip or token.rstrip or token.single_word
    ends = {token.content[:1], token.content[-1:]}
    return looks_around or " " in token.content or not ends.isdisjoint(ascii_letters)
