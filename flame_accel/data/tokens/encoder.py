"""What a record becomes: texts and conversations to documents of tokens.

A text is its tokens (never with what the tokenizer would add by itself), bos before it by policy,
eos after it always. Where a document ends is known to the packer alone: an eos that stands in a
text, which most tokenizers of Hugging Face read as the token, ends nothing. Where records come from
and how rows are filled is not known here.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Protocol, cast

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Conversation, Document, Encode, Record, Skipped
from flame_accel.data.tokens.chat import ChatTemplate, mark_targets
from flame_accel.data.tokens.pieces import PIECE_CHARACTERS, cut, space_at_cuts
from flame_accel.data.tokens.tokenizer import PROBE, WHERE, gives_bytes

PIECES_AT_ONCE = 32
"""Pieces of a long text that are tokenised in one call; all take memory until it returns."""


class Encoder:
    """Records to documents, in any thread, and after a fork.

    Special tokens that are spelled out in a text are read as the tokenizer does by itself: as the
    tokens, since texts may carry chat markers, or as text where its tokenizer_config.json says
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
        self._backend = _backend_of(tokenizer)
        self._gives_bytes = self._backend is not None and gives_bytes(self._backend)
        self._space = space_at_cuts(self._backend) if self._backend is not None else None
        self._chat: ChatTemplate | None = None

    def __reduce__(self) -> tuple[Callable[..., "Encoder"], tuple[PreTrainedTokenizerBase]]:
        # a pickled backend forgets how it treats special tokens
        return partial(Encoder, add_bos=self._bos is not None), (self._tokenizer,)

    def __call__(self, record: Record | Skipped) -> Document | Skipped:
        """Tokens of a record, int32; a conversation has targets, which are its assistant's tokens.

        Raises:
            UserError: a conversation, and the tokenizer's chat template cannot be used for it.
        """
        return self.encode_many([record])[0]

    def encode_many(self, records: Sequence[Record | Skipped]) -> list[Document | Skipped]:
        """What each record becomes; the texts but for long ones take one call of the library."""
        checked = [_check(record) if isinstance(record, str) else record for record in records]
        ids = self._ids([text for text in checked if isinstance(text, str)])
        return [
            self._document(next(ids))
            if isinstance(record, str)
            else record
            if isinstance(record, Skipped)
            else self._encode_conversation(record)
            for record in checked
        ]

    def _ids(self, texts: list[str]) -> Iterator[list[int]]:
        """Tokens of each text as the tokenizer gives them, in lists of their own."""
        if self._backend is None:
            for text in texts:
                yield self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return
        if self._gives_bytes:
            for text in texts:
                yield list(text.encode())
            return
        encode = partial(self._backend.encode_batch_fast, add_special_tokens=False)
        long = PIECE_CHARACTERS if self._space is not None else sys.maxsize
        whole = iter(encode([text for text in texts if len(text) <= long]))
        for text in texts:
            if len(text) <= long:
                yield next(whole).ids
                continue
            assert self._space is not None
            ids: list[int] = []
            pieces = cut(text, self._space)
            while group := list(islice(pieces, PIECES_AT_ONCE)):
                ids.extend(chain.from_iterable(encoding.ids for encoding in encode(group)))
            yield ids

    def _document(self, ids: list[int]) -> Document | Skipped:
        if not ids:
            return Skipped("empty", what="a text of which the tokenizer leaves nothing")
        if self._bos is not None:
            ids.insert(0, self._bos)
        ids.append(self._eos)
        return Document(np.fromiter(ids, dtype=np.int32, count=len(ids)))

    def _encode_conversation(self, conversation: Conversation) -> Document | Skipped:
        """Tokens as the template writes them, bos and eos only where it does not."""
        if self._backend is None:
            raise UserError(
                "conversations need a tokenizer that tells which characters a token stands for, "
                "which those written in Python do not",
                where=WHERE,
                remedy="take a tokenizer with a tokenizer.json",
            )
        if self._chat is None:
            self._chat = ChatTemplate(self._tokenizer)
        rendered = self._chat.render(conversation)
        if isinstance(rendered, Skipped):
            return rendered
        text = _check(rendered.text)
        if isinstance(text, Skipped):
            return text
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = encoding.ids
        starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
        targets = mark_targets(starts, rendered.spans).tolist()
        if not any(targets):
            return Skipped("damaged", what="the chat template leaves nothing of what is said")
        # some templates write a line break behind the last eos
        written = np.flatnonzero(starts < len(text.rstrip()))
        if not len(written) or ids[written[-1]] != self._eos:
            ids.append(self._eos)
            targets.append(conversation[-1]["role"] == "assistant")
        if self._bos is not None and ids[0] != self._bos:
            ids.insert(0, self._bos)
            targets.insert(0, False)
        return Document(np.array(ids, dtype=np.int32), np.array(targets, dtype=bool))


class Table(Protocol):
    """Records in any order, as sources give them."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record | Skipped: ...

    @property
    def fingerprint(self) -> str:
        """Hash of the records."""
        ...


class EncodedTable:
    """Documents of a table, encoded when they are asked for; what is passed over is given a place.

    Args:
        table: the records.
        encode: makes documents of them.
    """

    def __init__(self, table: Table, encode: Encode) -> None:
        self.name = table.name
        self._table = table
        self._encode = encode

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int, /) -> Document | Skipped:
        document = self._encode(self._table[index])
        if isinstance(document, Skipped) and not document.where:
            return document._replace(where=f"{self.name}, row {index}")
        return document

    @property
    def fingerprint(self) -> str:
        """Hash of the records."""
        return self._table.fingerprint


def _check(text: str) -> str | Skipped:
    """The text, if it can be encoded."""
    if not text:
        return Skipped("empty", what="a text without characters")
    if not text.isascii():
        try:
            text.encode()
        # JSON may hold escapes of half a character
        except UnicodeEncodeError as error:
            return Skipped("damaged", what=f"not Unicode: character {error.start} is a surrogate")
    return text


def _backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """What does the work of a tokenizer; None where code in Python does, or adds to it."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    backend = tokenizer.backend_tokenizer
    probe = f"{PROBE}{tokenizer.eos_token}"
    # this call also ends truncation, which some tokenizer.json files ask for and which would drop
    # text without a word, and sets how special tokens in a text are read
    expected = tokenizer(probe, add_special_tokens=False)["input_ids"]
    same = backend.encode(probe, add_special_tokens=False).ids == expected
    return backend if same else None
