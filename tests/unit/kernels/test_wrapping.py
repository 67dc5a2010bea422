"""Wrapping the functions that fla's layers call: everywhere, once, and until they are restored."""

from collections.abc import Callable, Iterator
from typing import Any

import fla.layers.gla
import fla.ops.gla
import pytest

from flame_accel import kernels
from flame_accel.kernels.wrapping import layer_function_paths, sequence_mixer_paths, wrap_functions

PATH = "fla.ops.gla.chunk.chunk_gla"


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    kernels.uninstall()
    kernels.install("torch")
    yield
    kernels.uninstall()
    kernels.install()


def tag(function: Callable[..., Any]) -> Callable[..., Any]:
    def tagged(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return tagged


def test_a_function_is_wrapped_wherever_it_was_imported_and_only_once():
    wrap_functions([PATH], tag)
    first = fla.ops.gla.chunk_gla
    assert first.__name__ == "tagged" and fla.layers.gla.chunk_gla is first
    wrap_functions([PATH], tag)
    assert fla.ops.gla.chunk_gla is first


def test_uninstalling_removes_the_wrapper():
    kernels.uninstall()
    original = fla.ops.gla.chunk_gla
    kernels.install("torch")
    wrap_functions([PATH], tag)
    kernels.uninstall()
    assert fla.ops.gla.chunk_gla is original and fla.layers.gla.chunk_gla is original


def test_operators_are_the_called_functions_that_mix_tokens():
    operators = set(sequence_mixer_paths())
    assert PATH in operators and operators < set(layer_function_paths())
    assert not any(".modules." in path for path in operators)
