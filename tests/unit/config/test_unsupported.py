"""Options that are not supported are refused by name."""

import pytest

from flame_accel.config import ConfigError
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


@pytest.mark.covers_option(
    "experimental.context_parallel_degree",
    "experimental.pipeline_parallel_degree",
    "experimental.enable_async_tensor_parallel",
    "experimental.enable_compiled_autograd",
)
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("experimental.context_parallel_degree", 2, "silently wrong for linear attention"),
        ("experimental.pipeline_parallel_degree", 2, "pipeline parallelism"),
        ("experimental.enable_async_tensor_parallel", True, "tensor parallelism"),
        ("experimental.enable_compiled_autograd", True, "backward pass"),
    ],
)
def test_what_is_not_supported_says_why(configured, name, value, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        configured(**{name: value})
    assert f"--{name}" in str(refused.value)
    # what the option says by itself asks for nothing
    configured(**{name: options()[name].default})
