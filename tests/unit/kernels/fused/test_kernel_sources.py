"""A trap of Triton that neither its interpreter nor a look at a kernel shows.

Triton takes a variable for one that a loop leaves alone if its first value in the loop is the very
value that it had before. Where two variables begin as one value and the loop shifts one into the
other, the second keeps its beginning for ever.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT

FUSED = sorted((ROOT / "flame_accel/kernels/fused").glob("*.py"))


def values_shared_by_variables(kernel: ast.FunctionDef) -> list[str]:
    """Names of which several variables of a kernel begin as a plain copy, outside of its loops."""
    copies: Counter[str] = Counter()
    for statement in kernel.body:
        if isinstance(statement, ast.Assign):
            value = statement.value
            values = value.elts if isinstance(value, ast.Tuple) else [value]
            copies.update(x.id for x in values if isinstance(x, ast.Name))
    return [name for name, count in copies.items() if count > 1]


def jitted_functions(source: str) -> list[ast.FunctionDef]:
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]


@pytest.mark.parametrize("path", FUSED, ids=lambda path: path.stem)
def test_no_variables_of_a_kernel_begin_as_one_value(path: Path):
    shared = {
        f"{kernel.name}: {name}"
        for kernel in jitted_functions(path.read_text())
        for name in values_shared_by_variables(kernel)
    }
    assert not shared


def test_variables_that_begin_as_one_value_are_found():
    source = "@triton.jit\ndef kernel(x):\n    zeros = f()\n    a, b = zeros, zeros\n    c = a\n"
    [kernel] = jitted_functions(source)
    assert values_shared_by_variables(kernel) == ["zeros"]
