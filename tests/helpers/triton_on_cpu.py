"""Lets Triton's interpreter run fla's kernels on CPU tensors, and round as a GPU does.

For `TRITON_INTERPRET=1`; importing it is enough, and cannot be undone. It adds what the interpreter
leaves out: bfloat16 arithmetic, tf32 products, and loop variables that are tensors. An autotuner
takes its first candidate, since there is nothing to time.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner

COMPARISONS = (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal)
TF32_BITS = np.uint32(0xFFFFE000)

Handle = interpreter.TensorHandle
Builder = interpreter.InterpreterBuilder
Original = Callable[..., Any]


def is_bf16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def widened(handle: Any) -> np.ndarray:
    """The data of a bfloat16 handle, which are 16 bits to numpy, in fp32; others as they are."""
    if not is_bf16(handle):
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def rounded(data: Any) -> np.ndarray:
    """fp32 to the nearest bfloat16, as 16 bits."""
    bits = np.asarray(data, dtype=np.float32, order="C").view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), nearest)


def cut_to_tf32(data: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(data).view(np.uint32) & TF32_BITS).view(np.float32)


def binary_op(original: Original, builder: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    if not is_bf16(lhs):
        return original(builder, lhs, rhs, op)
    result = op(widened(lhs), widened(rhs))
    data = result.astype(np.uint16) if op in COMPARISONS else rounded(result)
    return Handle(data, tl.bfloat16)


def unary_op(original: Original, builder: Any, arg: Any, op: Any) -> Any:
    if not is_bf16(arg):
        return original(builder, arg, op)
    return Handle(rounded(op(widened(arg))), tl.bfloat16)


def dot(original: Original, builder: Any, a: Any, b: Any, d: Any, precision: Any, n: Any) -> Any:
    x, y = widened(a), widened(b)
    if a.dtype.scalar == tl.float32 and precision == interpreter._ir.INPUT_PRECISION.TF32:
        x, y = cut_to_tf32(x), cut_to_tf32(y)
    total = widened(d)
    total = np.matmul(x, y, dtype=total.dtype) + total
    return Handle(rounded(total) if is_bf16(d) else total, d.dtype.scalar)


def cast(original: Original, builder: Any, source: Any, target: Any, *mode: Any) -> Any:
    data = widened(source)
    if target.scalar == tl.bfloat16:
        return Handle(rounded(data), tl.bfloat16)
    if is_bf16(source):
        return Handle(data.astype(interpreter._get_np_dtype(target)), target.scalar)
    return original(builder, source, target, *mode)


def total(ops: Any, input: Any) -> Any:
    sums = np.sum(widened(input.handle), axis=ops.axis, keepdims=ops.keep_dims)
    return ops.to_tensor(rounded(sums) if is_bf16(input.handle) else sums, input.dtype)


def bf16_constant(builder: Any, value: float) -> Any:
    return Handle(rounded([value]), tl.bfloat16)


def tensor_range(*bounds: Any) -> Any:
    numbers = [int(x.handle.data.item()) if isinstance(x, tl.tensor) else int(x) for x in bounds]
    return map(interpreter._implicit_cvt, range(*numbers))


def visit_for(transformer: ast.NodeTransformer, node: ast.For) -> ast.For:
    """Loops over `tensor_range` where it says `range`, as compiled kernels do."""
    transformer.generic_visit(node)
    call = node.iter
    if isinstance(call, ast.Call) and ast.unparse(call.func) in ("range", "tl.range"):
        call.func, call.keywords = ast.Name(id="tensor_range", ctx=ast.Load()), []
    return node


def take_first_candidate(kernel: Any, *args: Any, **kwargs: Any) -> Any:
    kernel.nargs = dict(zip(kernel.arg_names, args, strict=False))
    config = kernel.prune_configs(kwargs)[0]
    options = {**kwargs, **config.all_kwargs()}
    if config.pre_hook is not None:
        config.pre_hook({**kernel.nargs, **options})
    return kernel.fn.run(*args, **options)


prepared: set[interpreter.InterpretedFunction] = set()
"""Functions that the kernel which runs has called before."""


def run_kernel(original: Original, kernel: Any, *args: Any, **kwargs: Any) -> None:
    prepared.clear()
    original(kernel, *args, **kwargs)


def call_device_function(original: Original, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces the language's functions at the first call, not at each: a third of the time."""
    if function in prepared:
        return function.rewrite()(*args, **kwargs)
    prepared.add(function)
    return original(function, *args, **kwargs)


def fma(original: Original, builder: Any, x: Any, y: Any, z: Any) -> Any:
    if not is_bf16(z):
        return original(builder, x, y, z)
    return Handle(rounded(widened(x) * widened(y) + widened(z)), tl.bfloat16)


def elementwise(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    """A function of libdevice, of fp32."""
    return lambda x: tl.tensor(Handle(function(x.handle.data), x.dtype.scalar), x.type)


def gather(source: Any, index: Any, axis: int) -> Any:
    return tl.gather(source, index, axis)


def replace(original: Any, value: Any) -> None:
    """Wherever fla has imported it by its name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("fla."):
            for name in [name for name, x in vars(module).items() if x is original]:
                setattr(module, name, value)


def with_original(function: Callable[..., Any], original: Original) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(original, *args, **kwargs)


for name, function in {
    "binary_op": binary_op,
    "unary_op": unary_op,
    "create_dot": dot,
    "create_fma": fma,
    "cast_impl": cast,
    "create_fp_to_fp": cast,
}.items():
    setattr(Builder, name, with_original(function, getattr(Builder, name)))
for owner, name, value in (
    (Builder, "get_bf16", bf16_constant),
    (interpreter, "tensor_range", tensor_range),
    (interpreter.ASTTransformer, "visit_For", visit_for),
    (interpreter.ReduceOps, "sum", total),
    (Autotuner, "run", take_first_candidate),
    (
        interpreter.InterpretedFunction,
        "__call__",
        with_original(call_device_function, interpreter.InterpretedFunction.__call__),
    ),
    (
        interpreter.GridExecutor,
        "__call__",
        with_original(run_kernel, interpreter.GridExecutor.__call__),
    ),
    # what fla and `install` ask before they launch a kernel
    (torch.Tensor, "is_cuda", property(lambda tensor: True)),
    (importlib.import_module("flame_accel.kernels.install"), "triton_has_device", lambda: True),
):
    setattr(owner, name, value)
for name, function in {
    "exp": np.exp,
    "fast_cosf": np.cos,
    "fast_sinf": np.sin,
    "log1p": np.log1p,
    "tanh": np.tanh,
}.items():
    replace(getattr(libdevice, name), elementwise(function))
    setattr(libdevice, name, elementwise(function))
replace(tl.gather, gather)
