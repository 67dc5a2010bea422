"""A short version of each experiment; the long one is `make torture`."""

from collections.abc import Iterator

import pytest

from tests.torture.__main__ import EXPERIMENTS
from tests.torture.laboratory import Laboratory
from tests.torture.mutants import MUTANTS, Mutant, applied_text


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    place = Laboratory(tmp_path_factory.mktemp("torture"), seed=0)
    yield place
    place.forker.close()


# two processes take too long for the default suite
SLOW = ("kill-two", "kill-fsdp2", "kill-one-rank", "signal-two", "world-size")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in EXPERIMENTS]
)
def test_everything_survives(laboratory: Laboratory, name: str) -> None:
    experiment, count, _ = EXPERIMENTS[name]
    for outcome in experiment(laboratory, count):
        assert not outcome.problems, outcome


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_that_is_planted_has_a_place(mutant: Mutant) -> None:
    assert applied_text(mutant)
