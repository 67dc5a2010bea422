"""Probes that are made on the fly: the options of each task, and the names that ask for it.

`synthetic:mqar:pairs=16:length=64` is a value of `training.dataset` and of validation sets: a task
and those of its options that are not the default. The documents are made in `data.synthetic`.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_type_hints

from flame_accel.config.schema import option_from_annotation
from flame_accel.config.suggestions import nearest_text
from flame_accel.config.values import InvalidValue, parse_text_value

PREFIX = "synthetic:"
NUMBERS_PREFIX = "numbers:"
"""`numbers:N` as tokenizer: the tokens of the tasks that are made of token ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticTask:
    """Options of every task."""

    documents: int = 0
    """Number of documents of the split. 0 is 2^31 in training, which no run reads twice, and 1,000
    in validation."""
    seed: int = 0
    """Seed of the documents. Those of training and validation differ under the same seed."""

    @property
    def num_token_ids(self) -> int | None:
        """The documents are made of the token ids below this; None: of text."""
        return None

    @property
    def longest_document(self) -> int | None:
        """Most tokens in a document; None: unknown before a tokenizer has read it."""
        return None

    def broken_rules(self) -> Iterator[str]:
        """What is wrong with the values, each a sentence without a subject."""
        if self.documents < 0:
            yield "documents must be at least 0"
        if self.seed < 0:
            yield "seed must be at least 0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mqar(SyntheticTask):
    """Multi-query associative recall: pairs of a key and a value, then each key once more.

    The answer is the value that stood behind the key. Arora et al., "Zoology: Measuring and
    Improving Recall in Efficient Language Models" (2023), https://arxiv.org/abs/2312.04927,
    section 4 and appendix; defaults are the hardest setting of its figure 2.
    """

    vocab: int = 8192
    """Number of token ids: keys are below the half of it, values from there on."""
    pairs: int = 64
    """Number of pairs of a key and a value."""
    length: int = 512
    """Number of tokens in a document, even; at least four times as many as pairs."""
    power: float = 0.01
    """Exponent of the power law of the distances between pairs and queries; 1 is uniform."""
    filler: Literal["zero", "random"] = "random"
    """What stands between the queries: the id 0, or any ids but the keys of the document."""

    @property
    def num_token_ids(self) -> int:
        """Keys, values and the filler."""
        return self.vocab

    @property
    def longest_document(self) -> int:
        """All have the same length."""
        return self.length

    def broken_rules(self) -> Iterator[str]:
        """What is wrong with the values."""
        yield from super(Mqar, self).broken_rules()
        if self.pairs < 1:
            yield "pairs must be at least 1"
        if self.length % 2 or self.length < 4 * self.pairs:
            yield f"length must be even and at least 4 x pairs ({4 * self.pairs})"
        if self.vocab < 2 * self.pairs + 2:
            yield f"vocab must be at least 2 x pairs + 2 ({2 * self.pairs + 2})"
        if not 0 < self.power <= 1:
            yield "power must be above 0 and at most 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectiveCopying(SyntheticTask):
    """Tokens among noise, then a marker and the same tokens without the noise.

    Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023),
    https://arxiv.org/abs/2312.00752, section 4.1.1 and appendix E.1; defaults are theirs.
    """

    vocab: int = 16
    """Number of different tokens: the noise, id 0, and those to copy. The marker is one more."""
    tokens: int = 16
    """Number of tokens to copy."""
    length: int = 4096
    """Number of tokens in front of the marker."""

    @property
    def num_token_ids(self) -> int:
        """The noise, the tokens and the marker."""
        return self.vocab + 1

    @property
    def longest_document(self) -> int:
        """All have the same length."""
        return self.length + 1 + self.tokens

    def broken_rules(self) -> Iterator[str]:
        """What is wrong with the values."""
        yield from super(SelectiveCopying, self).broken_rules()
        if self.vocab < 2:
            yield "vocab must be at least 2"
        if not 1 <= self.tokens <= self.length:
            yield "tokens must be at least 1 and at most length"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModularAddition(SyntheticTask):
    """Numbers below the modulus, a marker, and their sum modulo it: state tracking.

    Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues" (2024),
    https://arxiv.org/abs/2411.12537, section 5.1; default lengths are those of its training.
    """

    modulus: int = 5
    """Ids below it are the numbers; the marker in front of the answer is the next one."""
    min_length: int = 3
    """Fewest numbers in a document; the count is drawn evenly."""
    length: int = 40
    """Most numbers in a document."""

    @property
    def num_token_ids(self) -> int:
        """The numbers and the marker."""
        return self.modulus + 1

    @property
    def longest_document(self) -> int:
        """The numbers, the marker and the answer."""
        return self.length + 2

    def broken_rules(self) -> Iterator[str]:
        """What is wrong with the values."""
        yield from super(ModularAddition, self).broken_rules()
        if self.modulus < 2:
            yield "modulus must be at least 2"
        if not 1 <= self.min_length <= self.length:
            yield "min_length must be at least 1 and at most length"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity(ModularAddition):
    """Bits, a marker, and whether the number of ones is odd: addition modulo 2.

    Source and default lengths as for `ModularAddition`.
    """

    modulus: Literal[2] = dataclasses.field(default=2, init=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Needle(SyntheticTask):
    """A number that is said once in a long text, and asked for at its end.

    As the pass key retrieval of Mohtashami and Jaggi, "Landmark Attention" (2023),
    https://arxiv.org/abs/2305.16300, section 4.2; the wording is ours.
    """

    length: int = 1024
    """Most tokens in a document, under the tokenizer of the run."""
    digits: int = 5
    """Number of digits of the number to find."""
    depth: float | None = None
    """Where the number stands: 0 is the start of the text, 1 its end. None draws it evenly."""

    @property
    def longest_document(self) -> int:
        """As many as asked for."""
        return self.length

    def broken_rules(self) -> Iterator[str]:
        """What is wrong with the values."""
        yield from super(Needle, self).broken_rules()
        if not 1 <= self.digits <= MOST_DIGITS:
            yield f"digits must be from 1 to {MOST_DIGITS}"
        if self.depth is not None and not 0 <= self.depth <= 1:
            yield "depth must be from 0 to 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Phonebook(SyntheticTask):
    """Names with their numbers, some of them as examples, then a name whose number is asked for.

    Jelassi et al., "Repeat After Me: Transformers are Better than State Space Models at Copying"
    (2024), https://arxiv.org/abs/2402.01032, section 4.2; the wording is ours.
    """

    entries: int = 20
    """Number of names."""
    digits: int = 7
    """Number of digits of a number."""
    shots: int = 2
    """Number of names that are asked and answered first; they are no targets."""

    def broken_rules(self) -> Iterator[str]:
        """What is wrong with the values."""
        yield from super(Phonebook, self).broken_rules()
        if not 1 <= self.entries <= MOST_NAMES:
            yield f"entries must be from 1 to {MOST_NAMES}"
        if not 0 <= self.shots < self.entries:
            yield "shots must be at least 0 and fewer than entries"
        if self.digits < 1:
            yield "digits must be at least 1"


MOST_DIGITS = 18
"""Number of digits that a needle can have: it is a 64-bit integer."""
MOST_NAMES = 2500
"""Number of names that a phone book can have."""
TASKS: dict[str, type[SyntheticTask]] = {
    "mqar": Mqar,
    "modular_addition": ModularAddition,
    "needle": Needle,
    "parity": Parity,
    "phonebook": Phonebook,
    "selective_copying": SelectiveCopying,
}


def is_synthetic(dataset: str) -> bool:
    """Whether the name of a dataset asks for a task."""
    return dataset.startswith(PREFIX)


def parse_synthetic_task(dataset: str) -> SyntheticTask:
    """The task that a name such as `synthetic:mqar:pairs=16` asks for.

    Raises:
        InvalidValue: no such task or option, or a value that it cannot have.
    """
    task_name, *settings = dataset.removeprefix(PREFIX).split(":")
    task_class = TASKS.get(task_name)
    if task_class is None:
        near = nearest_text(task_name, TASKS)
        known = f"Did you mean {PREFIX}{near}?" if near else f"Tasks are {', '.join(TASKS)}."
        raise InvalidValue(f"there is no task {task_name!r}", known)
    values = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        names = {field.name for field in dataclasses.fields(task_class) if field.init}
        if not separator or name not in names:
            near = nearest_text(name, names)
            hint = f"Did you mean {near}?" if near else f"Options are {', '.join(sorted(names))}."
            raise InvalidValue(
                f"{setting!r} is no option=value of {task_name}", f"{hint} They follow colons."
            )
        if name in values:
            raise InvalidValue(f"{task_name} has {name} twice", "Give each option once.")
        hint = get_type_hints(task_class)[name]
        try:
            values[name] = parse_text_value(option_from_annotation(name, hint, None), text)
        except InvalidValue as error:
            raise InvalidValue(f"{name}: {error.rule}", error.remedy) from None
    task = task_class(**values)
    rules = list(task.broken_rules())
    if rules:
        raise InvalidValue("; ".join(rules), f"Choose such values of {PREFIX}{task_name}.")
    return task
