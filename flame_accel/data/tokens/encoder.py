"""Encodes records: texts and conversations become documents of tokens.

A text becomes its tokens (without those that the tokenizer would add by itself), with bos in front
if the policy says so and eos always at the end. Only the packer knows where a document ends: an eos
inside a text, which most Hugging Face tokenizers read as the token, ends nothing. Sources and
packing are not known here.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Literal, cast

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flame_accel.config.errors import UserError
from flame_accel.data.documents import AnsweredText, Conversation, Document, Record, Skipped
from flame_accel.data.tokens.chat_template import ChatTemplate, mask_tokens_in_spans
from flame_accel.data.tokens.text_slicing import (
    SLICE_CHARACTERS,
    slice_text_at_spaces,
    space_at_cuts_if_cuttable,
)
from flame_accel.data.tokens.tokenizer import (
    PROBE_TEXT,
    TOKENIZER_OPTION,
    is_byte_tokenizer,
    tokenizer_identity,
    vocabulary_size,
)

SLICES_PER_CALL = 32
"""Slices of a long text that are tokenized in one call; all take memory until it returns."""


class Encoder:
    """Makes documents of records; safe in any thread and after a fork.

    A special token spelled out in a text is read as the tokenizer reads it: as the token, since
    texts may hold chat markers, or as text if its tokenizer_config.json sets
    "split_special_tokens", as that of the byte tokenizer does.

    Args:
        tokenizer: with an eos token.
        add_bos: whether documents start with bos.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, add_bos: bool) -> None:
        assert isinstance(tokenizer.eos_token_id, int)
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token_id
        assert not add_bos or isinstance(tokenizer.bos_token_id, int)
        self._bos = cast(int, tokenizer.bos_token_id) if add_bos else None
        self._backend = _untruncate_backend_in_place_if_equivalent(tokenizer)
        self._encodes_to_bytes = self._backend is not None and is_byte_tokenizer(self._backend)
        self._space_at_cuts: Literal["keep", "drop"] | None = (
            space_at_cuts_if_cuttable(self._backend) if self._backend is not None else None
        )
        self._chat_template: ChatTemplate | None = None

    def __reduce__(self) -> tuple[Callable[..., "Encoder"], tuple[PreTrainedTokenizerBase]]:
        # a pickled backend forgets how it reads special tokens
        return partial(Encoder, add_bos=self.add_bos), (self._tokenizer,)

    @property
    def add_bos(self) -> bool:
        """Whether documents start with bos."""
        return self._bos is not None

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, special ones included."""
        return vocabulary_size(self._tokenizer)

    def tokenizer_identity(self, *, with_chat_template: bool) -> str:
        """Hash of what the tokenizer does; see `tokenizer_identity`."""
        return tokenizer_identity(self._tokenizer, with_chat_template=with_chat_template)

    def __call__(self, record: Record | Skipped) -> Document | Skipped:
        """Encode one record to int32 tokens; of a conversation, the assistant's are the targets.

        Raises:
            UserError: a conversation for which the tokenizer's chat template cannot be used.
        """
        return self.encode_many([record])[0]

    def encode_many(self, records: Sequence[Record | Skipped]) -> list[Document | Skipped]:
        """Encode records; all texts except long ones in one call of the tokenizers library."""
        checked = [
            _text_or_skipped(record) if isinstance(record, str) else record for record in records
        ]
        token_ids = self._tokenize([text for text in checked if isinstance(text, str)])
        return [
            self._build_document_in_place(next(token_ids))
            if isinstance(record, str)
            else record
            if isinstance(record, Skipped)
            else self._encode_conversation(record)
            for record in checked
        ]

    def _tokenize(self, texts: list[str]) -> Iterator[list[int]]:
        """Token ids of each text, without bos and eos, in a list that may be changed."""
        if self._backend is None:
            for text in texts:
                yield self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return
        if self._encodes_to_bytes:
            for text in texts:
                yield list(text.encode())
            return
        encode = partial(self._backend.encode_batch_fast, add_special_tokens=False)
        max_length = SLICE_CHARACTERS if self._space_at_cuts is not None else sys.maxsize
        encodings = iter(encode([text for text in texts if len(text) <= max_length]))
        for text in texts:
            if len(text) <= max_length:
                yield next(encodings).ids
                continue
            assert self._space_at_cuts is not None
            ids: list[int] = []
            slices = slice_text_at_spaces(text, self._space_at_cuts)
            while group := list(islice(slices, SLICES_PER_CALL)):
                ids.extend(chain.from_iterable(encoding.ids for encoding in encode(group)))
            yield ids

    def _build_document_in_place(self, ids: list[int]) -> Document | Skipped:
        """A document of token ids, with bos and eos; changes `ids` in place."""
        if not ids:
            return Skipped("empty", what="a text of which the tokenizer leaves nothing")
        if self._bos is not None:
            ids.insert(0, self._bos)
        ids.append(self._eos)
        return Document(np.fromiter(ids, dtype=np.int32, count=len(ids)))

    def count_document_tokens(self, text: str) -> int:
        """Number of tokens of the document that a text becomes, bos and eos included."""
        return len(next(self._tokenize([text]))) + 1 + self.add_bos

    def encode_answered_text(self, record: AnsweredText) -> Document:
        """Encode a text; the tokens that have a character of an answer are the targets.

        Raises:
            UserError: the tokenizer does not tell which characters a token stands for.
        """
        encoding = self._backend_with_offsets("texts with answers").encode(
            record.text, add_special_tokens=False
        )
        bos = [] if self._bos is None else [self._bos]
        ids = np.array([*bos, *encoding.ids, self._eos], dtype=np.int32)
        targets = np.zeros(len(ids), dtype=bool)
        for position, (start, stop) in enumerate(encoding.offsets, len(bos)):
            targets[position] = any(start < end and first < stop for first, end in record.answers)
        return Document(ids, targets)

    def _backend_with_offsets(self, records: str) -> Tokenizer:
        if self._backend is None:
            raise UserError(
                f"{records} need a tokenizer that tells which characters a token stands for, "
                "which tokenizers written in Python do not",
                where=TOKENIZER_OPTION,
                remedy="use a tokenizer with a tokenizer.json",
            )
        return self._backend

    def _encode_conversation(self, conversation: Conversation) -> Document | Skipped:
        """Tokens as the template writes them; bos and eos are added only if it does not."""
        backend = self._backend_with_offsets("conversations")
        if self._chat_template is None:
            self._chat_template = ChatTemplate(self._tokenizer)
        rendered = self._chat_template.render(conversation)
        if isinstance(rendered, Skipped):
            return rendered
        text = _text_or_skipped(rendered.text)
        if isinstance(text, Skipped):
            return text
        encoding = backend.encode(text, add_special_tokens=False)
        ids = encoding.ids
        starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
        targets = mask_tokens_in_spans(starts, rendered.assistant_spans).tolist()
        if not any(targets):
            return Skipped("damaged", what="the chat template leaves nothing of what is said")
        # some templates write a line break after the last eos
        written = np.flatnonzero(starts < len(text.rstrip()))
        if not len(written) or ids[written[-1]] != self._eos:
            ids.append(self._eos)
            targets.append(conversation[-1]["role"] == "assistant")
        if self._bos is not None and ids[0] != self._bos:
            ids.insert(0, self._bos)
            targets.insert(0, False)
        return Document(np.array(ids, dtype=np.int32), np.array(targets, dtype=bool))


def _text_or_skipped(text: str) -> str | Skipped:
    """The text if it can be encoded; otherwise why not."""
    if not text:
        return Skipped("empty", what="a text without characters")
    if not text.isascii():
        try:
            text.encode()
        # JSON may hold escapes of half a character
        except UnicodeEncodeError as error:
            return Skipped("damaged", what=f"not Unicode: character {error.start} is a surrogate")
    return text


def _untruncate_backend_in_place_if_equivalent(
    tokenizer: PreTrainedTokenizerBase,
) -> Tokenizer | None:
    """The Rust tokenizer inside, if it gives the same tokens; None if Python code is involved."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    backend = tokenizer.backend_tokenizer
    probe = f"{PROBE_TEXT}{tokenizer.eos_token}"
    # this call also switches off truncation, which some tokenizer.json files ask for and which
    # would silently drop text, and sets how special tokens in a text are read
    expected = tokenizer(probe, add_special_tokens=False)["input_ids"]
    same = backend.encode(probe, add_special_tokens=False).ids == expected
    return backend if same else None
