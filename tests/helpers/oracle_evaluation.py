"""What a generated call of `oracle` returns, what its reference returns, and how they differ.

References are functions of sequences of equal length, most often fla's own `naive_*`, and run in
fp64. Packed documents, reversed time, states with values first and final states that are not asked
for are undone here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.helpers.gradients import flatten
from tests.helpers.oracle import Call, OracleCase, Result, values_come_first
from tests.helpers.parity import Arguments, relative_error

FP32_TOLERANCE, FP32_FLOOR = 1e-4, 1e-6
"""Norm of a difference, relative to that of the reference, and in addition for each number."""
BF16_ROUNDING = 2.0**-9
"""Half a unit in the last of eight places: what rounding changes a number by, relative to it."""
ROUNDINGS = 4.0
"""As often a number may have been rounded to bf16 on its way. The largest of 30,000 results and
gradients (60 calls of each operator) was off by three times what one rounding of all changes."""

Allowed = Callable[[str, Tensor], float]
"""Norm of a difference that is allowed, of a result's name and its reference."""


def evaluate(
    call: Call, arguments: Arguments, run: Callable[[Arguments], list[Tensor]]
) -> dict[str, Tensor]:
    """Results of `run` by name ("out0", ...) and gradients of a random projection ("d q", ...)."""
    leaves = {
        name: x.detach()
        .clone()
        .requires_grad_(name not in call.case.fixed and not call.case.forward_only)
        for name, x in arguments.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    results = run(arguments | leaves)
    found = {f"out{index}": x.detach() for index, x in enumerate(results)}
    generator = torch.Generator().manual_seed(call.seed + 1)
    # of a dtype that both have
    weights = [
        torch.randn(x.shape, generator=generator, dtype=torch.bfloat16).to(x) for x in results
    ]
    pairs = [(x, w) for x, w in zip(results, weights, strict=True) if x.requires_grad]
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    if pairs and wanted:
        outputs, directions = zip(*pairs, strict=True)
        given = [x.clone() for x in directions]
        gradients = torch.autograd.grad(outputs, [*wanted.values()], given, materialize_grads=True)
        assert all(map(torch.equal, given, directions)), "the call changes gradients of its results"
        found |= {f"d {name}": x for name, x in zip(wanted, gradients, strict=True)}
    changed = [name for name, x in leaves.items() if not torch.equal(x, arguments[name])]
    assert not changed, f"inputs changed by the call: {changed}"
    return found


def run_operator(call: Call, function: Callable[..., Any], arguments: Arguments) -> list[Tensor]:
    """All tensors that an operator returns."""
    results = flatten(call.case.call(function, dict(arguments)))
    return [x for x in results if x is not None]


def evaluate_reference(call: Call, arguments: Arguments) -> dict[str, Tensor]:
    """The same of the reference, in fp64 on the same values."""
    doubled = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    }
    with fp32_means_fp64():
        return evaluate(call, doubled, lambda given: _run_reference(call, given))


def _run_reference(call: Call, arguments: Arguments) -> list[Tensor]:
    """The reference for each document, with what all operators treat alike undone."""
    case, letters = call.case, call.case.letters
    defaults = {name: p.default for name, p in case.parameters.items() if p.default is not p.empty}
    given = {name: x.mT if values_come_first(call, name) else x for name, x in arguments.items()}
    results = []
    for number, (begin, end) in enumerate(_document_edges(call)):
        document = dict(defaults)
        for name, x in given.items():
            if isinstance(x, Tensor) and name in letters:
                x = _slice_document(call, x, letters[name], number, begin, end)
            document[name] = x
        for name in case.states:
            if document.get(name) is None and name in letters:
                shape = [1 if y == "N" and call.lengths else y for y in letters[name]]
                sizes = [int(y) if str(y).isdigit() else call.sizes[str(y)] for y in shape]
                document[name] = torch.full(sizes, case.neutral.get(name, 0.0))
        results.append(_run_on_document(case, document, begin == end))
    per_token = [
        torch.cat(x, 1) for x in zip(*(r.per_token for r in results if r.per_token), strict=True)
    ]
    option = case.states_option
    if not arguments.get(option, defaults.get(option, True)):
        return per_token
    states = []
    for index, parts in enumerate(zip(*(r.states for r in results), strict=False)):
        name = case.states[index]
        x = torch.cat(parts, max(letters.get(name, "").find("N"), 0))
        states.append(x.mT if values_come_first(call, name) else x)
    return [*per_token, *states]


def _document_edges(call: Call) -> list[tuple[int, int]]:
    if call.lengths is None:
        return [(0, call.sizes["T"])]
    return [*pairwise([0, *torch.tensor(call.lengths).cumsum(0).tolist()])]


def _slice_document(
    call: Call, x: Tensor, letters: str, number: int, begin: int, end: int
) -> Tensor:
    if call.lengths is None:
        return x
    for dimension, letter in enumerate(letters):
        if letter == "N":
            return x.narrow(dimension, number, 1)
        if letter == "T":
            return x.narrow(dimension, begin, end - begin)
        if letter == "S":
            steps = x.shape[dimension] // call.sizes["T"]
            return x.narrow(dimension, begin * steps, (end - begin) * steps)
    return x


def _run_on_document(case: OracleCase, document: Arguments, empty: bool) -> Result:
    if empty and not case.answers_empty_documents:
        return Result([], [document[name] for name in case.states if name in case.letters])
    letters = case.letters
    if document.get("reverse"):
        document = {
            name: x.flip(1) if letters.get(name, "")[1:2] == "T" and isinstance(x, Tensor) else x
            for name, x in document.items()
        }
    result = case.reference(document)
    if document.get("reverse"):
        result = result._replace(per_token=[x.flip(1) for x in result.per_token])
    return result


class _Fp64(TorchFunctionMode):
    """Where code asks for fp32 it gets fp64."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.float:
            function = Tensor.double
        double = [torch.float64 if x is torch.float32 else x for x in args]
        named = {
            name: torch.float64 if x is torch.float32 else x for name, x in (kwargs or {}).items()
        }
        return function(*double, **named)


@contextmanager
def fp32_means_fp64() -> Iterator[None]:
    """Lets references that round to fp32 compute in fp64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Fp64():
            yield
    finally:
        torch.set_default_dtype(before)


def allowed_for_ours(call: Call, arguments: Arguments, expected: Mapping[str, Tensor]) -> Allowed:
    """In bf16, a few times what the reference changes by if all inputs are rounded once more.

    And results, and numbers about 1, of which some gradients are small differences.
    """
    if call.dtype is torch.float32:
        return lambda name, e: FP32_TOLERANCE * _norm(e) + FP32_FLOOR * e.numel() ** 0.5
    rounded = evaluate_reference(call, _rounded_once_more(call, arguments))

    def allowed(name: str, e: Tensor) -> float:
        change = torch.where(rounded[name] == expected[name], 0.0, rounded[name] - expected[name])
        roundings = _norm(change) + BF16_ROUNDING * (_norm(e) + e.numel() ** 0.5)
        return ROUNDINGS * roundings

    return allowed


def _rounded_once_more(call: Call, arguments: Arguments) -> Arguments:
    """Inputs in bf16, each changed by up to a rounding."""
    generator = torch.Generator().manual_seed(call.seed + 2)

    def change(x: Tensor) -> Tensor:
        random = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
        return x.double() * (1 + BF16_ROUNDING * random)

    return {
        name: change(x) if isinstance(x, Tensor) and x.dtype is torch.bfloat16 else x
        for name, x in arguments.items()
    }


def _norm(x: Tensor) -> float:
    return x[x.isfinite()].norm().item()


def list_differences(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], allowed: Allowed
) -> list[str]:
    """Results that are not within tolerance of the reference; empty if all are."""
    wrong = []
    for name in expected | found:
        if name not in found or name not in expected:
            wrong.append(f"{name}: only {'the operator' if name in found else 'the reference'}")
            continue
        x, e = found[name].double().cpu(), expected[name].double()
        if x.shape != e.shape:
            wrong.append(f"{name}: shape {[*x.shape]}, not {[*e.shape]}")
            continue
        # the same infinities differ by nothing
        difference = torch.where(x == e, 0.0, x - e).norm().item()
        # not <=, which would let NaN pass
        if not difference <= allowed(name, e):
            wrong.append(
                f"{name}: relative error {relative_error(x, e):.1e}, norm of the difference "
                f"{difference:.1e}, of the reference {_norm(e):.1e}, allowed {allowed(name, e):.1e}"
            )
    return wrong
