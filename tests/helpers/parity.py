"""Runs two implementations of an operator on the same inputs and compares all that they give.

Outputs, final states and gradients, by name. The inputs of each operator are in `parity_cases_*`,
the comparisons in `tests/gpu/test_kernels.py`. As a program it prints what runs with
`PARITY_REPORT` have written: `python tests/helpers/parity.py report.jsonl`.
"""

import importlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = dict[str, Any]
Tensors = dict[str, Tensor]


class Layout(NamedTuple):
    """Of the tokens of a case: rows of equal length, or one row of packed sequences."""

    rows: int
    tokens: int
    edges: tuple[int, ...] | None = None

    @property
    def sequences(self) -> int:
        return self.rows if self.edges is None else len(self.edges) - 1


LAYOUTS = {
    "2x64": Layout(2, 64),
    "2x256": Layout(2, 256),
    # less than a chunk, a chunk less one, one token, and several chunks
    "ragged": Layout(1, 300, (0, 17, 80, 81, 300)),
}
FIXED = ("2x64", "2x256")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

TOLERANCES = {
    # what products are made of is rounded, several times on the way to a gradient: bf16 rounds by
    # up to 2^-9 (rms 1.1e-3), and tf32, in which Triton multiplies fp32 by default, cuts off up to
    # 2^-10 (rms 5.6e-4) of both factors
    "products": {"bf16": 2e-2, "fp32": 5e-3},
    # arithmetic is fp32; inputs are the same, and only results are rounded
    "elementwise": {"bf16": 4e-3, "fp32": 1e-5},
}
"""Norm of the difference to our fp32 result, relative to the norm of that."""


class Looser(NamedTuple):
    """Where no implementation in that precision can be as close."""

    dtype: str
    tolerance: float
    reason: str
    tensor: str = ""
    """All of the case if empty."""


class Case(NamedTuple):
    """An operator with one set of options."""

    operator: str
    """Below `fla.`, as in `flame_accel.kernels.replacements.REPLACEMENTS`."""
    build: Callable[["Draw"], Arguments]
    """Arguments by name, tensors in fp32."""
    variant: str = ""
    call: Callable[[Callable[..., Any], Arguments], Any] = lambda function, x: function(**x)
    """How the function takes them."""
    arithmetic: str = "products"
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    kept: frozenset[str] = frozenset()
    """Inputs that stay in fp32 in addition to `KEPT`: the kernels expect that."""
    fixed: frozenset[str] = frozenset()
    """Inputs that fla's operator has no gradient for."""
    forward_only: str = ""
    """Why fla's operator has no backward; empty where it has one."""
    refusals: Mapping[str, str] = {}
    """Precision -> in what words fla refuses it."""
    looser: tuple[Looser, ...] = ()

    @property
    def name(self) -> str:
        return ".".join(self.operator.split(".")[1:]) + (
            f"[{self.variant}]" if self.variant else ""
        )


def narrow(build: Callable[["Draw"], Arguments], width: int = 32) -> Callable[["Draw"], Arguments]:
    """The same inputs with narrower heads, for which kernels are compiled to other instructions."""

    def cut(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        square = x.dim() > 1 and x.shape[-1] == x.shape[-2]
        x = x[..., :width] if x.shape[-1] > width else x
        return x[..., :width, :] if square else x

    return lambda d: {name: cut(value) for name, value in build(d).items()}


KEPT = frozenset({"g", "gk", "gv", "g_gamma", "initial_state", "A_log", "dt_bias"})
"""Inputs that fla's layers keep in fp32 under autocast."""


class Draw(NamedTuple):
    """Draws inputs for a layout."""

    layout: Layout
    generator: torch.Generator

    def normal(self, *tail: int) -> Tensor:
        """One of `tail` for every token."""
        return self.parameter(self.layout.rows, self.layout.tokens, *tail)

    def unit(self, *tail: int) -> Tensor:
        """As `normal`, of length 1."""
        return F.normalize(self.normal(*tail), dim=-1)

    def unit_interval(self, *tail: int) -> Tensor:
        """Between 0 and 1."""
        return self.normal(*tail).sigmoid()

    def log_decay(self, *tail: int) -> Tensor:
        """Mostly gentle, some steep: from nearly 0 to -5."""
        shape = (self.layout.rows, self.layout.tokens, *tail)
        return -5 * torch.rand(shape, generator=self.generator) ** 4

    def state(self, *tail: int) -> Tensor:
        """One of `tail` for every sequence."""
        return self.parameter(self.layout.sequences, *tail)

    def parameter(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


class ParityResult(NamedTuple):
    """How far a result is from the reference."""

    operator: str
    layout: str
    dtype: str
    of: str
    """"fla" or "ours"."""
    tensor: str
    error: float
    tolerance: float
    note: str = ""

    def __str__(self) -> str:
        return (
            f"{self.operator} {self.dtype} {self.layout} {self.of} {self.tensor}: relative error "
            f"{self.error:.2e}, tolerance {self.tolerance:.0e}{self.note and '; ' + self.note}"
        )


def resolve(path: str) -> Any:
    """What is at a dotted path of a module and a name in it."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def arguments_of(case: Case, layout: Layout, dtype: str, device: str) -> Arguments:
    """The inputs of a case; those that are not kept in fp32 are rounded to `dtype`."""
    arguments = case.build(Draw(layout, torch.Generator().manual_seed(layout.tokens)))
    if layout.edges is not None:
        arguments["cu_seqlens"] = torch.tensor(layout.edges, dtype=torch.int32)
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            rounded = value.is_floating_point() and name not in KEPT | case.kept
            arguments[name] = value.to(device, DTYPES[dtype] if rounded else None)
    return arguments


def widened(arguments: Arguments) -> Arguments:
    """The same values in fp32."""
    return {
        name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    }


def evaluate(function: Callable[..., Any], arguments: Arguments, case: Case, dtype: str) -> Tensors:
    """Results by name ("out0", ...), and gradients of a random projection of them ("d q", ...)."""
    leaves = {
        name: x.detach().clone().requires_grad_(not case.forward_only and name not in case.fixed)
        for name, x in arguments.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    results = dict(_named(case.call(function, {**arguments, **leaves}), "out"))
    found = {name: y.detach() for name, y in results.items()}
    if case.forward_only:
        return found
    outputs = {name: y for name, y in results.items() if y.requires_grad}
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(y.shape, generator=generator).to(DTYPES[dtype]).to(y) for y in outputs.values()
    ]
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    gradients = torch.autograd.grad(
        [*outputs.values()], [*wanted.values()], weights, allow_unused=True
    )
    for name, gradient in zip(wanted, gradients, strict=True):
        if gradient is not None:
            found[f"d {name}"] = gradient
    return found


def _named(result: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(result, Tensor):
        yield name, result
    elif isinstance(result, (tuple, list)):
        for index, item in enumerate(result):
            yield from _named(item, f"{name}{index}")


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Infinite where a value is not finite or missing; absolute where the reference is 0."""
    if value.shape != reference.shape:
        return math.inf
    difference = (value.double() - reference.double()).norm().item()
    norm = reference.double().norm().item()
    error = difference / norm if norm else difference
    return error if math.isfinite(error) else math.inf


def compare(
    case: Case, layout: str, dtype: str, of: str, values: Tensors, reference: Tensors
) -> list[ParityResult]:
    """Every tensor of both; one that only one of them has is infinitely far away."""
    results = []
    for name in reference | values:
        tolerance = TOLERANCES[case.arithmetic][dtype]
        note = ""
        for looser in case.looser:
            if looser.dtype == dtype and looser.tensor in ("", name):
                tolerance, note = looser.tolerance, looser.reason
        if name in values and name in reference:
            error = relative_error(values[name], reference[name])
            if values[name].shape != reference[name].shape:
                note = f"shape {[*values[name].shape]}, ours in fp32 {[*reference[name].shape]}"
        else:
            error, note = math.inf, f"only {of if name in values else 'ours in fp32'} has it"
        results.append(ParityResult(case.name, layout, dtype, of, name, error, tolerance, note))
    return results


def where_raised(error: BaseException) -> str:
    """The exception with the place in fla or here that it comes from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    places = [
        f"{each.filename.rpartition('/fla/')[2]}:{each.lineno}"
        for each in traceback.extract_tb(error.__traceback__)
        if "/fla/" in each.filename or "/flame_accel/kernels/" in each.filename
    ]
    place = places[-1] if places else f"{frame.filename}:{frame.lineno}"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:600]}"


def report(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends lines of JSON; several processes may do so at the same time."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def _print_report(path: str) -> None:
    """A table of the worst error of each operator, and all that failed."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    worst: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in (row for row in rows if "error" in row):
        key = (row["operator"], row["dtype"], row["of"])
        if key not in worst or row["error"] / row["tolerance"] > _excess(worst[key]):
            worst[key] = row
    print("| operator | dtype | of | worst tensor | layout | relative error | tolerance |")
    print("|---|---|---|---|---|---|---|")
    for (operator, dtype, of), row in sorted(worst.items()):
        mark = " **fails**" if _excess(row) > 1 else ""
        print(
            f"| {operator} | {dtype} | {of} | {row['tensor']} | {row['layout']} "
            f"| {row['error']:.1e}{mark} | {row['tolerance']:.0e} |"
        )
    print()
    for row in (row for row in rows if "outcome" in row):
        print(f"- {row['operator']} {row['dtype']} {row['layout']}: {row['outcome']}")


def _excess(row: Mapping[str, Any]) -> float:
    return row["error"] / row["tolerance"]


if __name__ == "__main__":
    _print_report(sys.argv[1])
