"""The documents of a task by index: each is a function of task, split and index alone.

So their order, packing and resuming are those of any table (`lanes.shuffled_table`), and nothing is
stored or read.
"""

import hashlib

import numpy as np

from flame_accel.config.errors import UserError
from flame_accel.config.synthetic_tasks import (
    ModularAddition,
    Mqar,
    Needle,
    Phonebook,
    SelectiveCopying,
    SyntheticTask,
)
from flame_accel.data.documents import AnsweredText, Document, EncodedRecord
from flame_accel.data.sources.record_hashes import hash_list_as_json
from flame_accel.data.synthetic.mqar import make_mqar
from flame_accel.data.synthetic.needle import make_needle
from flame_accel.data.synthetic.phonebook import make_phonebook
from flame_accel.data.synthetic.selective_copying import make_selective_copying
from flame_accel.data.synthetic.state_tracking import make_modular_addition
from flame_accel.data.tokens.encoder import Encoder

ENDLESS = 2**31
"""Number of documents of training unless the task says so: more than any run reads."""
DEFAULT_DOCUMENTS = {"train": ENDLESS, "validation": 1000}
"""By split, for tasks that do not say."""


class SyntheticDocuments:
    """Documents of a task, made when they are read.

    Args:
        name: how messages name the data.
        task: the task with its options.
        split: train or validation, which have other documents.
        encoder: makes tokens of the tasks that are texts.
    """

    def __init__(self, name: str, task: SyntheticTask, split: str, encoder: Encoder) -> None:
        self.name = name
        self.task = task
        self._split = split
        self._encoder = encoder
        self._num_documents = task.documents or DEFAULT_DOCUMENTS[split]
        digest = hashlib.blake2b(f"{split} {task}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, "big")

    def __len__(self) -> int:
        return self._num_documents

    def __getitem__(self, index: int, /) -> Document:
        made = self._make(index)
        return made if isinstance(made, Document) else self._encoder.encode_answered_text(made)

    def read_with_num_text_bytes(self, index: int) -> EncodedRecord:
        """A document; the length of its text is 0 where there is none, as with token ids."""
        made = self._make(index)
        if isinstance(made, Document):
            return EncodedRecord(made, 0)
        return EncodedRecord(self._encoder.encode_answered_text(made), len(made.text.encode()))

    @property
    def sampled_records_fingerprint(self) -> str:
        """Hash of the task and of some of its documents, which a change of their code changes."""
        sample = [self[index].tokens.tolist() for index in range(min(4, len(self)))]
        return hash_list_as_json([self._key, len(self), sample])

    def _make(self, index: int) -> Document | AnsweredText:
        rng = np.random.Generator(np.random.Philox(key=[self._key, index]))
        return make_answered_document(self.task, rng, self._encoder)


def make_answered_document(
    task: SyntheticTask, rng: np.random.Generator, encoder: Encoder
) -> Document | AnsweredText:
    """One document of a task: token ids, or a text that the tokenizer of the run reads.

    Raises:
        UserError: a needle's question alone is longer than its documents are to be.
    """
    match task:
        case Mqar():
            return make_mqar(task, rng)
        case ModularAddition():
            return make_modular_addition(task, rng)
        case SelectiveCopying():
            return make_selective_copying(task, rng)
        case Phonebook():
            return make_phonebook(task, rng)
        case Needle():
            made = make_needle(task, rng, encoder.count_document_tokens)
            needed = encoder.count_document_tokens(made.text)
            if needed > task.length:
                raise UserError(
                    f"length={task.length} has no room for the question, which has {needed} tokens",
                    where="synthetic:needle",
                    remedy=f"give a length of at least {needed}",
                )
            return made
        case _:
            raise AssertionError(task)
