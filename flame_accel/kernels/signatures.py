"""Binds calls of fla's functions to the functions that replace them: nothing is lost on the way.

A replacement has the signature of fla's function, and gets by name what our implementation takes.
Any other argument is refused by its name, unless it has its default or is one of
`CHOICES_OF_KERNELS`, which change how a GPU computes and not what. How the values of arguments are
checked is in `argument_checks`.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from flame_accel.config.errors import UserError

CHOICES_OF_KERNELS: dict[str, str] = {
    "C": "block of tokens that a kernel works on",
    "accumulate_grad_in_fp32": "gradients are always added up in fp32",
    "backend": "which convolution kernel runs",
    "checkpoint_level": "what is kept for the backward pass",
    "chunk_indices": "chunks of cu_seqlens; they are counted here",
    "chunk_size": "tokens of a chunk; the result does not depend on it",
    "cu_seqlens_cpu": "the boundaries of cu_seqlens on the host",
    "disable_recompute": "what is kept for the backward pass",
    "inplace_backward": "whether gradients are written over the logits",
    "lower_bound": "of gates, which decides on a kernel where it is no part of the gate",
    "max_num_seqs": "capacity of a captured graph",
    "max_seqlen": "taken from cu_seqlens",
    "num_chunks": "rows that are computed at a time",
    "safe_gate": "whether gates are bounded such that faster instructions can be used",
    "solve_tril_precision": "of a kernel; here it is fp32",
    "use_graph": "whether kernels are captured as a graph",
}
"""Arguments without effect on results, and what they choose."""

TAKEN_FROM_KWARGS = {"A_log", "dt_bias", "use_gate_in_kernel"}
"""Arguments that some of fla's functions take out of their `**kwargs`."""

IGNORED_BY_FLA = {("chunk_precond_kda", "use_qk_l2norm_in_kernel")}
"""Functions and arguments that callers pass in `**kwargs` and fla never reads: it always
normalises."""

FORMER_NAMES = {"transpose_state_layout": "state_v_first"}
"""Names of arguments that fla still takes, and today's."""


class ArgumentError(UserError, ValueError):
    """An argument of an operator that fla, or our implementation, does not take."""


def bind_to_fla_signature_refusing_unsupported_arguments(
    name: str,
    original: Callable[..., Any],
    ours: Callable[..., Any],
    check: Callable[[str, Mapping[str, Any]], None] | None = None,
) -> Callable[..., Any]:
    """`ours`, called as fla's function is.

    Args:
        name: fla's name of the function.
        original: fla's function.
        ours: Takes arguments by fla's names, not necessarily all of them.
        check: Raises an error if arguments by name are not what the function of that name takes.

    Returns:
        A function with the signature of `original`, and with `ours` as its `implementation`; `ours`
        itself if fla's names no argument, or if nothing is to be checked or refused.

    Raises:
        TypeError: On a call, an argument is missing, unknown to fla, or given twice.
        ArgumentError: On a call, our implementation does not take an argument.
    """
    signature = inspect.signature(original)
    named = [p for p in signature.parameters.values() if p.kind not in _VARIABLE]
    if not named:
        return ours
    taken = list_taken_arguments(ours)
    if check is None and _names_kinds_and_defaults(signature) == _names_kinds_and_defaults(
        inspect.signature(ours)
    ):
        return ours
    positional = [p.name for p in named if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    defaults = {p.name: p.default for p in named if p.default is not p.empty}
    required = [p.name for p in named if p.default is p.empty]
    # where ours has another default, or none
    supplied = {
        key: value
        for key, value in defaults.items()
        if key in taken and not _is_same_object_or_equal(taken[key].default, value)
    }
    # what our implementation computes if it is not told
    ours_without = {key: parameter.default for key, parameter in taken.items()} | defaults
    more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    known = {p.name for p in named} | (TAKEN_FROM_KWARGS & set(taken) if more else set())

    @functools.wraps(ours)
    def call_ours_with_fla_arguments(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(positional):
            raise TypeError(
                f"{name}() takes {len(positional)} positional arguments but {len(args)} were given"
            )
        arguments = dict(zip(positional, args, strict=False))
        for given, value in kwargs.items():
            key = given
            if more and given not in known and given in FORMER_NAMES:
                key = FORMER_NAMES[given]
                if kwargs.get(key):
                    raise ArgumentError(f"{name} got {key} and its former name {given}")
                warnings.warn(
                    f"{given} of {name} is now called {key}", DeprecationWarning, stacklevel=2
                )
            if key in arguments and key == given:
                raise TypeError(f"{name}() got multiple values for argument '{key}'")
            arguments[key] = value
        for key in required:
            if key not in arguments:
                raise TypeError(f"{name}() missing required argument: '{key}'")
        if check is not None:
            check(name, arguments)
        passed = dict(supplied)
        for key, value in arguments.items():
            if key in taken and key in known:
                passed[key] = value
            elif key not in known and not more:
                raise TypeError(f"{name}() got an unexpected keyword argument '{key}'")
            elif (name, key) in IGNORED_BY_FLA:
                continue
            elif key not in CHOICES_OF_KERNELS and not _is_same_object_or_equal(
                value, ours_without.get(key)
            ):
                raise ArgumentError(
                    f"{name} does not take {key}={_repr_or_tensor_type(value)} in PyTorch",
                    remedy=f"call it without {key}, or on a machine with a Triton device",
                )
        return ours(**passed)

    bound: Any = call_ours_with_fla_arguments
    bound.__signature__ = signature
    bound.implementation = ours
    return bound


def list_taken_arguments(ours: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments that our implementation of a function takes by name."""
    return {
        name: parameter
        for name, parameter in inspect.signature(ours).parameters.items()
        if parameter.kind not in _VARIABLE
    }


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _names_kinds_and_defaults(signature: inspect.Signature) -> list[tuple[Any, ...]]:
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


def _is_same_object_or_equal(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(default, Tensor):
        return value is default
    return value is default or bool(value == default)


def _repr_or_tensor_type(value: Any) -> str:
    return f"<{type(value).__name__}>" if isinstance(value, Tensor) else repr(value)
