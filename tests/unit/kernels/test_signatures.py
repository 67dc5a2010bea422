"""Replacements have the signatures of fla's functions, and honour or refuse every argument."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flame_accel import kernels
from flame_accel.kernels.argument_checks import (
    CHUNK_SIZES,
    FP32_STATES,
    SHAPES,
    dimension_letters_by_argument,
)
from flame_accel.kernels.fused.replace import FUSED, FusedFunction
from flame_accel.kernels.install import _resolve_attribute_value_or_none
from flame_accel.kernels.replacements import (
    FIXES_EVERYWHERE,
    REPLACEMENTS,
    REPLACEMENTS_WITHOUT_FLASH_ATTN,
)
from flame_accel.kernels.signatures import (
    CHOICES_OF_KERNELS,
    TAKEN_FROM_KWARGS,
    ArgumentError,
    bind_to_fla_signature_refusing_unsupported_arguments,
    list_taken_arguments,
)

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
MOBA = "ops.moba.parallel.parallel_moba"
FUNCTIONS = {
    theirs: ours
    for theirs, ours in (
        FIXES_EVERYWHERE | {MOBA: REPLACEMENTS_WITHOUT_FLASH_ATTN[MOBA]} | REPLACEMENTS
    ).items()
    if theirs.rpartition(".")[0].rpartition(".")[2].islower()
}
"""What is replaced, without methods of layers."""


@pytest.fixture(scope="module")
def originals() -> dict[str, Callable[..., Any]]:
    """fla's own functions."""
    importlib.import_module("fla")
    kernels.uninstall()
    found = {
        theirs: _resolve_attribute_value_or_none(f"fla.{theirs}").value for theirs in FUNCTIONS
    }
    kernels.install("torch")
    return found


def named(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind not in VARIABLE}


def implementation(path: str) -> Callable[..., Any]:
    return _resolve_attribute_value_or_none(f"flame_accel.kernels.{path}").value


@pytest.mark.parametrize("theirs", FUNCTIONS)
def test_installed_functions_have_the_signature_of_fla(originals, theirs):
    expected = inspect.signature(originals[theirs])
    installed = inspect.signature(_resolve_attribute_value_or_none(f"fla.{theirs}").value)
    if named(originals[theirs]):
        assert [*installed.parameters.values()] == [*expected.parameters.values()] or [
            (p.name, p.kind, p.default) for p in installed.parameters.values()
        ] == [(p.name, p.kind, p.default) for p in expected.parameters.values()]


@pytest.mark.parametrize("theirs", FUNCTIONS)
def test_our_implementations_swallow_nothing(theirs):
    for table in (FIXES_EVERYWHERE, REPLACEMENTS):
        if theirs in table:
            parameters = inspect.signature(implementation(table[theirs])).parameters.values()
            assert not {p.kind for p in parameters} & set(VARIABLE)


@pytest.mark.parametrize("table", [FIXES_EVERYWHERE, REPLACEMENTS], ids=["fixes", "replacements"])
@pytest.mark.parametrize("theirs", FUNCTIONS)
def test_every_argument_is_taken_or_refused_by_name(originals, theirs, table):
    original = originals[theirs]
    ours = implementation(table.get(theirs, FUNCTIONS[theirs]))
    bound = bind_to_fla_signature_refusing_unsupported_arguments("f", original, ours)
    if bound is ours:
        return
    required = {
        name: None
        for name, parameter in named(original).items()
        if parameter.default is parameter.empty
    }
    left = set(named(original)) - set(list_taken_arguments(ours)) - set(CHOICES_OF_KERNELS)
    for name in left:
        with pytest.raises(ArgumentError, match=name):
            bound(**required | {name: object()})


@pytest.mark.parametrize("row", FUSED, ids=lambda row: row.theirs)
def test_fused_kernels_take_arguments_in_the_order_of_fla(row: FusedFunction):
    theirs = _resolve_attribute_value_or_none(f"fla.{row.theirs}")
    module = importlib.import_module(f"flame_accel.kernels.fused.{row.module}")
    expected = named(theirs.value)
    arguments = {name: object() for name in expected}
    for function in (getattr(module, row.ours or theirs.name), getattr(module, row.supports)):
        bound = inspect.signature(function).bind(*arguments.values()).arguments
        # ours call the layer by another name than self
        for name in [*expected][isinstance(theirs.owner, type) :]:
            if name in named(function):
                assert bound[name] is arguments[name]
                assert named(function)[name].default == expected[name].default


def test_an_argument_unknown_to_fla_is_no_argument(originals):
    x = torch.randn(1, 4, 2, 8)
    for name in ("ops.gla.chunk.chunk_gla", "ops.kda.chunk.chunk_kda"):
        bound = bind_to_fla_signature_refusing_unsupported_arguments(
            "f", originals[name], implementation(FUNCTIONS[name])
        )
        with pytest.raises((TypeError, ArgumentError), match="colour"):
            bound(x, x, x, x, x[..., 0], colour=1)
    with pytest.raises(TypeError, match="missing"):
        bound(x, x, x)
    with pytest.raises(TypeError, match="multiple"):
        bound(x, x, x, x, x[..., 0], beta=x)
    with pytest.raises(TypeError, match="positional"):
        bound(*[x] * 30)


def test_defaults_are_those_of_fla_where_ours_differ():
    def original(x: int, scale: float = 2.0, **kwargs: Any) -> None: ...

    def ours(x: int, scale: float | None = None) -> tuple[int, float | None]:
        return x, scale

    bound = bind_to_fla_signature_refusing_unsupported_arguments("f", original, ours)
    assert bound(1) == (1, 2.0) and bound(1, None) == (1, None)
    assert bound.implementation is ours and bound.__name__ == "ours"


def test_the_former_name_of_an_argument_is_taken():
    from fla.ops.kda import chunk_kda

    x = torch.randn(1, 4, 2, 8)
    inputs = (x, x, torch.randn(1, 4, 2, 5), -x.abs(), x[..., 0])
    expected = chunk_kda(*inputs, state_v_first=True, output_final_state=True)[1]
    with pytest.warns(DeprecationWarning, match="now called state_v_first"):
        former = chunk_kda(*inputs, transpose_state_layout=True, output_final_state=True)[1]
    assert expected.shape == (1, 2, 5, 8) and torch.equal(expected, former)
    with pytest.raises(ArgumentError, match="former name"):
        chunk_kda(*inputs, state_v_first=True, transpose_state_layout=True)


def test_choices_of_kernels_are_arguments_of_fla(originals):
    assert set(CHOICES_OF_KERNELS) <= {name for f in originals.values() for name in named(f)}


def test_tables_of_checks_name_functions_and_arguments_of_fla(originals):
    functions = {path.rpartition(".")[2]: original for path, original in originals.items()}
    for name in SHAPES:
        assert (
            set(dimension_letters_by_argument(name))
            <= set(named(functions[name])) | TAKEN_FROM_KWARGS
        ), name
    assert {*CHUNK_SIZES, *FP32_STATES} <= set(SHAPES)
