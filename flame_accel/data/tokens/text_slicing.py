"""Cuts long texts into slices, for tokenizers that provably give the same tokens for them.

For one text, the tokenizers library needs about 500 bytes of memory per token, and from 100,000
characters on it runs at less than two thirds of its speed; slices avoid both. Texts are cut between
a letter and a space that is followed by a letter. Two kinds of tokenizers always have a boundary
between tokens there that does not depend on the text on the other side:

- Those that split a text into words with one of the patterns below: none of them matches a space
  after a letter, looks back, or looks ahead past a letter (GPT-2, Llama 3, Qwen, o200k).
- Those that write spaces as U+2581 and do not split, provided that no token of the vocabulary has
  one after a letter, so that no merge crosses the cut (Llama 2, Mistral).

All other tokenizers are given whole texts.
"""

import json
import re
from collections.abc import Iterator
from string import ascii_letters
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, models
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

SLICE_CHARACTERS = 8192
"""Least length of a slice except the last."""
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
WORD_PATTERNS = (r"\p{N}".join(_CL100K), r"\p{N}{1,3}".join(_CL100K), _O200K)
"""Qwen 2, Llama 3 (and GPT-4), o200k; the pattern of GPT-2 is built into the library."""


def space_at_cuts_if_cuttable(backend: Tokenizer) -> Literal["keep", "drop"] | None:
    """Whether a slice after a cut starts with the space; None: texts must not be cut."""
    model = backend.model
    added = backend.get_added_tokens_decoder().values()
    if (
        not isinstance(model, models.BPE)
        or model.dropout
        or any(map(_added_token_may_cross_cuts, added))
    ):
        return None
    normalizers = _tokenizer_component_steps(backend.normalizer, "normalizers")
    splits = _tokenizer_component_steps(backend.pre_tokenizer, "pretokenizers")
    if _splits_with_known_word_pattern(splits) and normalizers in ([], [{"type": "NFC"}]):
        return "keep"
    if not _never_merges_across_spaces(backend, model):
        return None
    if not normalizers and len(splits) == 1 and splits[0]["type"] == "Metaspace":
        return "keep" if splits[0]["replacement"] == SPACE else None
    # these prepend a space to every slice, as they do to the text
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return "drop" if not splits and normalizers == [prepend, replace] else None


def slice_text_at_spaces(text: str, space_at_cuts: Literal["keep", "drop"]) -> Iterator[str]:
    """Cut a text at the first possible place after every `SLICE_CHARACTERS` characters.

    Args:
        text: any text.
        space_at_cuts: whether a slice after a cut starts with the space.
    """
    start = 0
    while found := CUT.search(text, start + SLICE_CHARACTERS):
        yield text[start : found.start()]
        start = found.start() if space_at_cuts == "keep" else found.end()
    yield text[start:]


def _tokenizer_component_steps(
    component: Normalizer | PreTokenizer | None, list_key: str
) -> list[dict[str, Any]]:
    """Steps of a normalizer or pre-tokenizer, as the library writes them to tokenizer.json."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state.get(list_key, [state])


def _splits_with_known_word_pattern(splits: list[dict[str, Any]]) -> bool:
    """Whether the splits are those of GPT-2 or one of `WORD_PATTERNS`, followed by bytes."""
    *before, last = splits or [{"type": None}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last["use_regex"]:
        return not before
    form = {"type": "Split", "behavior": "Isolated", "invert": False}
    return before in [[{**form, "pattern": {"Regex": pattern}}] for pattern in WORD_PATTERNS]


def _never_merges_across_spaces(backend: Tokenizer, model: models.BPE) -> bool:
    """Whether no token holds a letter followed by a space, and letters and spaces are known."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return (
        not model.ignore_merges
        and model.continuing_subword_prefix is None
        and model.end_of_word_suffix is None
        and vocabulary.keys() >= {SPACE, *ascii_letters}
        and not any(re.search(f"[A-Za-z]{SPACE}", token) for token in vocabulary)
    )


def _added_token_may_cross_cuts(token: AddedToken) -> bool:
    """Whether an added token could match across a cut, or next to one."""
    looks_around = token.lstrip or token.rstrip or token.single_word
    ends = {token.content[:1], token.content[-1:]}
    return looks_around or " " in token.content or not ends.isdisjoint(ascii_letters)
