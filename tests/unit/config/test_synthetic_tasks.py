"""The names of tasks: every option is read with its type, and whatever means none is refused."""

import dataclasses

import pytest

from flame_accel.config.synthetic_tasks import (
    PREFIX,
    TASKS,
    Mqar,
    Needle,
    Parity,
    is_synthetic,
    parse_synthetic_task,
)
from flame_accel.config.values import InvalidValue


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_read_with_its_defaults_and_with_every_option(name: str) -> None:
    defaults = parse_synthetic_task(PREFIX + name)
    assert defaults == TASKS[name]()
    values = {
        field.name: getattr(defaults, field.name)
        for field in dataclasses.fields(defaults)
        if field.init and getattr(defaults, field.name) is not None
    }
    written = ":".join([PREFIX + name, *(f"{key}={value}" for key, value in values.items())])
    assert is_synthetic(written)
    assert parse_synthetic_task(written) == defaults


def test_values_have_the_types_of_their_options() -> None:
    assert parse_synthetic_task("synthetic:mqar:power=1:filler=zero:pairs=4") == Mqar(
        power=1.0, filler="zero", pairs=4
    )
    assert parse_synthetic_task("synthetic:needle:depth=0.5") == Needle(depth=0.5)
    assert parse_synthetic_task("synthetic:needle:depth=none") == Needle()
    assert parse_synthetic_task("synthetic:parity").longest_document == Parity().length + 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("synthetic:mqarr", "there is no task 'mqarr'"),
        ("synthetic:", "there is no task ''"),
        ("synthetic:mqar:paris=4", "'paris=4' is no option=value of mqar"),
        ("synthetic:mqar:pairs", "'pairs' is no option=value"),
        ("synthetic:parity:modulus=3", "'modulus=3' is no option=value"),
        ("synthetic:mqar:pairs=4.5", "pairs: must be a whole number"),
        ("synthetic:mqar:filler=none", "filler: must be one of zero, random"),
        ("synthetic:mqar:pairs=400", "length must be even and at least 4 x pairs"),
        ("synthetic:mqar:pairs=0", "pairs must be at least 1"),
        ("synthetic:mqar:vocab=100", "vocab must be at least 2 x pairs"),
        ("synthetic:mqar:power=0", "power must be above 0"),
        ("synthetic:mqar:seed=-1", "seed must be at least 0"),
        ("synthetic:mqar:documents=-1", "documents must be at least 0"),
        ("synthetic:selective_copying:tokens=5:length=4", "tokens must be at least 1"),
        ("synthetic:selective_copying:vocab=1", "vocab must be at least 2"),
        ("synthetic:modular_addition:modulus=1", "modulus must be at least 2"),
        ("synthetic:modular_addition:length=2", "min_length must be at least 1"),
        ("synthetic:needle:depth=1.5", "depth must be from 0 to 1"),
        ("synthetic:needle:digits=0", "digits must be from 1 to 18"),
        ("synthetic:needle:digits=19", "digits must be from 1 to 18"),
        ("synthetic:needle:length=200:length=300", "needle has length twice"),
        ("synthetic:phonebook:entries=9999", "entries must be from 1 to"),
        ("synthetic:phonebook:shots=20", "shots must be at least 0 and fewer"),
        ("synthetic:phonebook:digits=0", "digits must be at least 1"),
    ],
)
def test_what_means_no_task_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        parse_synthetic_task(name)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(InvalidValue) as error:
        parse_synthetic_task("synthetic:mqar:paris=4")
    assert "Did you mean pairs?" in error.value.remedy
