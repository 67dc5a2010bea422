"""Documents of tasks: a solver that reads only the text finds the answers, which are the targets.

The solvers know the rule of a task, not the code that makes its documents.
"""

import pickle
import re

import numpy as np
import pytest

from flame_accel.config.errors import UserError
from flame_accel.config.synthetic_tasks import TASKS, parse_synthetic_task
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.synthetic.documents import ENDLESS, SyntheticDocuments
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import build_number_tokenizer, load_tokenizer
from tests.helpers.probe_solvers import ID_TASKS, SolvedTask

BYTE = Encoder(load_tokenizer("byte", False), add_bos=False)
NUMBERS = Encoder(build_number_tokenizer(64), add_bos=False)


def open_task(name: str, split: str = "train", encoder: Encoder = BYTE) -> SyntheticDocuments:
    return SyntheticDocuments(name, parse_synthetic_task(name), split, encoder)


@pytest.mark.parametrize("task", ID_TASKS, ids=lambda task: task.name)
def test_the_rule_gives_exactly_the_targets_and_chance_gives_its_share(task: SolvedTask) -> None:
    name, solve, answers, choices = task
    documents = open_task(name)
    longest = documents.task.longest_document
    seen = np.zeros(64, dtype=int)
    guess = np.random.default_rng(0)
    right = total = 0
    for index in range(400):
        tokens, targets = documents[index]
        assert targets is not None
        assert longest is not None
        assert len(tokens) == len(targets) <= longest
        (places,) = np.nonzero(targets)
        assert len(places) == answers
        ids = tokens.tolist()
        assert [solve(ids, at) for at in places.tolist()] == tokens[places].tolist()
        np.add.at(seen, tokens[places], 1)
        possible = np.flatnonzero(seen)
        right += int((guess.choice(possible, answers) == tokens[places]).sum())
        total += answers
    assert np.count_nonzero(seen) == choices
    # three standard deviations of a guess among all answers; fewer are known at the start
    chance = 1 / choices
    assert right / total < chance + 3 * np.sqrt(chance * (1 - chance) / total) + 0.02


def test_queries_of_mqar_are_near_to_their_pairs_as_the_power_law_says() -> None:
    def mean_place(power: str) -> float:
        documents = open_task(f"synthetic:mqar:vocab=64:pairs=4:length=128:power={power}")
        return float(np.mean([np.flatnonzero(targets_of(documents, i)) for i in range(100)]))

    # uniform queries are in the middle of what follows the 8 tokens of the pairs
    assert mean_place("1") == pytest.approx(68.5, abs=6)
    assert mean_place("0.01") < 45


def test_lengths_of_sums_are_all_in_use() -> None:
    documents = open_task("synthetic:parity:min_length=3:length=6")
    assert {len(documents[i].tokens) - 2 for i in range(200)} == {3, 4, 5, 6}


def targets_of(documents: SyntheticDocuments, index: int) -> np.ndarray:
    targets = documents[index].targets
    assert targets is not None
    return targets


def text_and_answer(documents: SyntheticDocuments, index: int) -> tuple[str, str]:
    """What the bytes before the targets and those that are targets say; eos is no target."""
    tokens, targets = documents[index]
    assert targets is not None
    assert tokens[-1] == 256
    assert not targets[-1]
    (places,) = np.nonzero(targets)
    assert places.tolist() == list(range(places[0], len(tokens) - 1))
    return bytes(tokens[: places[0]].tolist()).decode(), bytes(tokens[places].tolist()).decode()


@pytest.mark.parametrize("depth", [None, 0.0, 0.25, 1.0])
def test_a_needle_is_said_once_at_its_depth_in_a_text_of_its_length(depth: float | None) -> None:
    documents = open_task(f"synthetic:needle:length=700:depth={'none' if depth is None else depth}")
    depths = []
    for index in range(25):
        text, answer = text_and_answer(documents, index)
        numbers = list(re.finditer(r"\d+", text))
        assert [number.group() for number in numbers] == [answer]
        assert len(answer) == 5
        assert 700 - 60 < len(documents[index].tokens) <= 700
        first, last = text.index(". ", 40), text.index(" Which number")
        depths.append((numbers[0].start() - first) / (last - first))
    if depth is None:
        assert min(depths) < 0.2 < 0.8 < max(depths)
    else:
        assert np.allclose(depths, depth, atol=0.13)


def test_a_needle_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="length=20 has no room for the question, which has"):
        open_task("synthetic:needle:length=20")[0]


def test_a_phone_book_has_the_number_that_is_asked_for() -> None:
    documents = open_task("synthetic:phonebook:entries=9:digits=4:shots=2")
    for index in range(25):
        text, answer = text_and_answer(documents, index)
        book = dict(re.findall(r"^(.+): (\d{4})$", text, re.MULTILINE))
        assert len(book) == 9
        *shots, (asked,) = (
            re.findall(r"The number of (.+) is (\d+)\.", text),
            re.findall(r"The number of (.+) is $", text),
        )
        assert len(shots[0]) == 2
        assert all(book[name] == number for name, number in shots[0])
        assert asked not in dict(shots[0])
        assert book[asked] == answer


@pytest.mark.parametrize("task", sorted({*TASKS} - {"phonebook"}))
def test_documents_depend_on_task_split_seed_and_index_alone(task: str) -> None:
    name = f"synthetic:{task}:length=600"

    def tokens(documents: SyntheticDocuments, index: int) -> list[int]:
        made = documents.read_with_num_text_bytes(index).document
        assert isinstance(made, Document)
        return made.tokens.tolist()

    documents = open_task(name)
    far = ENDLESS - 1
    drawn = {index: tokens(documents, index) for index in (5, far, 0)}
    again = pickle.loads(pickle.dumps(open_task(name)))
    assert {index: tokens(again, index) for index in (0, 5, far)} == drawn
    assert len({tuple(made) for made in drawn.values()}) == 3
    others = open_task(name, "validation"), open_task(f"{name}:seed=1")
    assert [len(documents), *map(len, others)] == [ENDLESS, 1000, ENDLESS]
    assert all(tokens(other, 5) != drawn[5] for other in others)
    prints = {one.sampled_records_fingerprint for one in (documents, again, *others)}
    assert len(prints) == 3


def test_texts_tell_their_size_and_token_ids_have_none() -> None:
    phonebook = open_task("synthetic:phonebook:documents=3")
    assert len(phonebook) == 3
    document, size = phonebook.read_with_num_text_bytes(1)
    assert not isinstance(document, Skipped)
    assert size == len(document.tokens) - 1
    assert open_task("synthetic:parity").read_with_num_text_bytes(1).num_text_bytes == 0
