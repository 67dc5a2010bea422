"""Runs what Triton makes of a kernel, its TTIR, on a CPU with numpy.

Triton's interpreter runs a kernel as Python, so that it cannot show what the compiler takes
differently. Here the kernel is compiled for a GPU that need not be there, and the operations of its
TTIR are done one after the other: those that our kernels without matrix products have, as far as a
test has needed them. Tensors of bf16 are held as fp32.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

Value = Any
"""An array, a scalar of numpy, or a `Pointer`."""
Environment = dict[str, Value]

DTYPES: Mapping[str, Any] = {
    "i1": np.bool_, "i8": np.int8, "i32": np.int32, "i64": np.int64,
    "f32": np.float32, "bf16": np.float32,
}  # fmt: skip
BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "arith.addi": np.add, "arith.addf": np.add, "arith.muli": np.multiply,
    "arith.mulf": np.multiply, "arith.subi": np.subtract, "arith.subf": np.subtract,
    "arith.divf": np.divide, "arith.andi": np.bitwise_and,
}  # fmt: skip
COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "slt": np.less, "sge": np.greater_equal, "eq": np.equal,
}  # fmt: skip
CASTS = ("arith.extsi", "arith.extf", "arith.uitofp", "arith.truncf")
NAME = re.compile(r"%\w+(?:#\d+)?")


class Pointer(NamedTuple):
    """Places in one of the kernel's tensors."""

    tensor: str
    places: Any


class TensorType(NamedTuple):
    """`tensor<4x64xbf16>`, or `i32` with an empty shape."""

    shape: tuple[int, ...]
    dtype: str


def compile_to_ttir(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, int | bool]
) -> list[str]:
    """The lines of a kernel's TTIR for `sm_90`.

    Args:
        kernel: A function under `triton.jit`.
        types: Of its parameters, such as `*bf16` or `i32`.
        constants: Values of the others, which are `tl.constexpr`.
    """
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"]
    lines = (line.strip() for line in text.splitlines() if not line.startswith("#"))
    return [re.sub(r"\s*loc\([^)]*\)+", "", line).strip() for line in lines]


def launch_on_numpy(
    lines: list[str],
    tensors: Mapping[str, NDArray[Any]],
    numbers: Mapping[str, int],
    grid: tuple[int, int],
) -> None:
    """Runs all programs of a grid; places outside of a tensor fail.

    Args:
        lines: As of `compile_to_ttir`.
        tensors: One-dimensional arrays by parameter, which are written to.
        numbers: The other parameters.
        grid: Programs in x and y.
    """
    for x, y in np.ndindex(grid):
        environment: Environment = {f"%{name}": Pointer(name, np.int64(0)) for name in tensors}
        environment |= {f"%{name}": np.int32(number) for name, number in numbers.items()}
        _Program(tensors, {"x": x, "y": y}).run(lines, environment)


class _Program:
    def __init__(self, tensors: Mapping[str, NDArray[Any]], ids: Mapping[str, int]) -> None:
        self.tensors, self.ids = tensors, ids

    def run(self, lines: list[str], environment: Environment) -> list[Value]:
        """Runs a block and returns what it yields."""
        rest = iter(lines)
        for line in rest:
            match = re.match(r"(?:(%\w+)(?::\d+)? = )?(.*)$", line)
            assert match is not None
            name, operation = match[1], match[2]
            if operation.startswith("scf.yield"):
                return [environment[n] for n in NAME.findall(operation)]
            if operation.startswith("scf.for"):
                values = self.run_loop(operation, _take_block(rest), environment)
            elif operation.startswith("scf.if"):
                taken, other = _take_block(rest), _take_block(rest)
                holds = environment[NAME.findall(operation)[0]]
                values = self.run(taken if holds else other, dict(environment))
            elif operation.startswith('"tt.reduce"'):
                assert any("arith.addf" in inner for inner in _take_block(rest))
                axis = int(operation.partition("axis = ")[2][0])
                environment[name] = environment[NAME.findall(operation)[0]].sum(axis)
                continue
            else:
                if operation.startswith(("tt.", "arith.", "math.")) and "tt.func" not in operation:
                    environment[name] = self.compute(operation, environment)
                continue
            environment |= {f"{name}#{i}": value for i, value in enumerate(values)}
        return []

    def run_loop(self, head: str, body: list[str], environment: Environment) -> list[Value]:
        """Runs `scf.for`, and returns what it carries."""
        step_name, first, end, stride, *_ = NAME.findall(head)
        carried = re.findall(r"(%\w+) = (%\w+(?:#\d+)?)", head.partition("iter_args(")[2])
        values = [environment[start] for _, start in carried]
        for step in range(*(int(environment[n]) for n in (first, end, stride))):
            inner = environment | {step_name: np.int32(step)}
            inner |= {n: value for (n, _), value in zip(carried, values, strict=True)}
            values = self.run(body, inner)
        return values

    def compute(self, operation: str, environment: Environment) -> Value:
        """The result of an operation without a block; None if it only stores."""
        kind, result = operation.split()[0], _result_type(operation)
        operands = [environment[name] for name in NAME.findall(operation)]
        if kind in BINARY:
            return BINARY[kind](*operands)
        if kind in CASTS:
            cast = np.asarray(operands[0]).astype(DTYPES[result.dtype])
            return torch.from_numpy(cast).bfloat16().float().numpy() if "trunc" in kind else cast
        match kind:
            case "arith.constant":
                text = operation.partition("dense<")[2].partition(">")[0] or operation.split()[1]
                return np.full(result.shape, float(text)).astype(DTYPES[result.dtype])
            case "arith.cmpi":
                return COMPARISONS[operation.split()[1].rstrip(",")](*operands)
            case "math.exp":
                return np.exp(operands[0])
            case "tt.get_program_id":
                return np.int32(self.ids[operation.split()[1]])
            case "tt.make_range":
                return np.arange(result.shape[0], dtype=np.int32)
            case "tt.splat" | "tt.broadcast":
                return _map_places(operands[0], lambda x: np.broadcast_to(x, result.shape))
            case "tt.expand_dims":
                axis = int(operation.partition("axis = ")[2][0])
                return _map_places(operands[0], lambda x: np.expand_dims(x, axis))
            case "tt.addptr":
                return _map_places(operands[0], lambda x: x + np.asarray(operands[1], np.int64))
            case "tt.load":
                pointer, mask, other = operands
                tensor, places = self.tensors[pointer.tensor], np.where(mask, pointer.places, 0)
                assert places.min() >= 0 and places.max() < len(tensor)
                return np.where(mask, tensor[places], other).astype(tensor.dtype)
            case "tt.store":
                pointer, value, mask = operands
                assert np.all(pointer.places[mask] >= 0)
                self.tensors[pointer.tensor][pointer.places[mask]] = value[mask]
                return None
            case "tt.return":
                return None
            case _:
                raise NotImplementedError(operation)


def _take_block(lines: Iterator[str]) -> list[str]:
    """The lines up to the one that closes the block which has just been opened."""
    block: list[str] = []
    depth = 1
    for line in lines:
        depth += line.count("{") - line.count("}")
        if depth == 0 or (depth == 1 and line.startswith("} else")):
            return block
        block.append(line)
    raise ValueError("a block has no end")


def _result_type(operation: str) -> TensorType:
    text = re.split(r" : | -> | to ", operation)[-1]
    match = re.match(r"tensor<((?:\d+x)*)(.*)>$", text)
    if match is None:
        return TensorType((), text)
    return TensorType(tuple(int(n) for n in match[1].split("x") if n), match[2])


def _map_places(value: Value, function: Callable[[Any], Any]) -> Value:
    if isinstance(value, Pointer):
        return Pointer(value.tensor, function(value.places))
    return function(value)
