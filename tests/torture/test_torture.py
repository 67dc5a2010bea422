"""A short version of each experiment; the long one is `make torture`."""

from collections.abc import Iterator

import pytest

from tests.torture.experiments import EXPERIMENTS, run_experiment
from tests.torture.laboratory import Laboratory, Skipped
from tests.torture.mutants import MUTANTS, Mutant, applied_text


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    place = Laboratory(tmp_path_factory.mktemp("torture"), seed=0)
    yield place
    place.forker.close()


# two processes take too long for the default suite
SLOW = (
    "kill-two",
    "kill-fsdp2",
    "kill-one-rank",
    "signal-two",
    "stop",
    "poison",
    "calls-two",
    "world-size",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in EXPERIMENTS]
)
def test_everything_survives(laboratory: Laboratory, name: str) -> None:
    try:
        for outcome in run_experiment(laboratory, name, range(EXPERIMENTS[name].short)):
            assert not outcome.problems, outcome
    except Skipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_that_is_planted_has_a_place(mutant: Mutant) -> None:
    assert applied_text(mutant)
