"""Puts our Triton kernels in the place of fla's functions, where they support the call."""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from flame_accel.kernels.install import Replacement, _replace_in_loaded_modules, _resolve_attribute


class FusedFunction(NamedTuple):
    """One of our functions, and the one of fla that it replaces."""

    theirs: str
    """Dotted path below `fla.`"""
    module: str
    """Ours, below `flame_accel.kernels.fused.`; the function has the same name."""
    supports: str
    """In the same module: whether a call is one for ours."""


FUSED = (
    FusedFunction("modules.norm.layernorm.rms_norm", "norm", "supports_rms_norm"),
    FusedFunction("modules.norm.fused_norm_gate.rms_norm_gated", "norm", "supports_rms_norm_gated"),
    FusedFunction("modules.activations.ops.swiglu", "swiglu", "supports_swiglu"),
    FusedFunction("modules.activations.ops.swiglu_linear", "swiglu", "supports_swiglu"),
)


_allowed = [True]


@contextmanager
def fused_kernels_disabled() -> Iterator[None]:
    """Has fla's own functions called inside the block, to compare with."""
    _allowed.append(False)
    try:
        yield
    finally:
        _allowed.pop()


def install_fused_kernels() -> None:
    """Replaces fla's norms and gated linear units until `uninstall`; where Triton has a device."""
    importlib.import_module("fla")
    replacements: dict[int, Replacement] = {}
    for theirs, module_name, supports in FUSED:
        _, name, original = _resolve_attribute(f"fla.{theirs}")
        if hasattr(original, "replaces"):
            continue
        module = importlib.import_module(f"flame_accel.kernels.fused.{module_name}")
        ours = _choose_implementation_per_call(
            getattr(module, name), getattr(module, supports), original
        )
        replacements[id(original)] = Replacement(original, ours)
    _replace_in_loaded_modules(replacements)


def _choose_implementation_per_call(
    ours: Callable[..., Any], supports_call: Callable[..., bool], original: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(ours)
    def call_ours_if_supported(*args: Any, **kwargs: Any) -> Any:
        function = ours if _allowed[-1] and supports_call(*args, **kwargs) else original
        return function(*args, **kwargs)

    found: Any = call_ours_if_supported
    found.replaces = original
    return found
