"""Options that are not supported are refused by name."""

import pytest

from flame_accel.config.flame_aliases import FLAME_OPTIONS
from flame_accel.config.schema import options
from flame_accel.config.unsupported import UNSUPPORTED
from tests.helpers.options import only_problem


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    option = options().get(name) or FLAME_OPTIONS[name]
    special = {
        "evaluation.dataset": "a,b",
    }
    plain = {bool: str(not option.default), int: "7", float: "7", str: "x"}
    choice = next((value for value in option.choices if value != option.default), None)
    value = special.get(name) or choice or plain[option.kind]
    message = only_problem(f"--{name}={value}")
    assert UNSUPPORTED[name].reason in message
    assert UNSUPPORTED[name].remedy in message


def test_the_table_of_refusals_names_only_options() -> None:
    assert set(UNSUPPORTED) <= {*options(), *FLAME_OPTIONS}
