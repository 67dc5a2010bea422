"""The functions that layers call to compute, as installed, and a way to stand between the two.

They are Triton's or PyTorch's. Operators are those that carry the cost of a model: fla's sequence
mixers and softmax attention. What is computed token by token (norms, gates, activations) or
from a few neighbours (convolutions) is not among them. Why somebody stands between is not known
here.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from flame_accel.kernels.install import _resolve, _set, _sweep
from flame_accel.kernels.replacements import (
    FIXES_EVERYWHERE,
    REPLACEMENTS,
    REPLACEMENTS_WITHOUT_FLASH_ATTN,
)

Operator = Callable[..., Any]

LIGHT = {
    "create_block_mask",
    "chunk_global_cumsum",
    "fused_addcmul_rwkv7",
    "fused_additive_gate",
    "fused_k_rwkv7",
    "fused_kda_gate",
    "gate_output_correction",
    "transform",
}
"""Functions of the operators' families, by our names, that mix no tokens or only add them up."""

OUTSIDE_OF_FLA = ("flame_accel.kernels.recurrence.mamba.selective_scan",)
"""Operators of ours that fla has no name for."""


DOCUMENT_BY_DOCUMENT = (
    "fla.layers.abc.ABCAttention.__call__",
    "fla.layers.log_linear_mamba2.LogLinearMamba2.forward",
    "fla.layers.mamba3.Mamba3.forward",
    "fla.layers.mom.MomAttention.forward",
)
"""Methods of layers that cut a batch into pieces whose lengths its contents decide."""


def function_paths() -> list[str]:
    """Dotted paths of all functions that fla's layers call; some may lead nowhere."""
    return [*_served(), *OUTSIDE_OF_FLA]


def operator_paths() -> list[str]:
    """Those of `function_paths` that are operators."""
    operators = [
        path
        for path, ours in _served().items()
        if not ours.startswith("modules.") and ours.rpartition(".")[2] not in LIGHT
    ]
    return [*operators, *OUTSIDE_OF_FLA]


def _served() -> dict[str, str]:
    """As the tables, without methods of layers, which call functions and are none."""
    tables = (REPLACEMENTS, REPLACEMENTS_WITHOUT_FLASH_ATTN, FIXES_EVERYWHERE)
    return {
        f"fla.{theirs}": ours
        for table in tables
        for theirs, ours in table.items()
        if theirs.rpartition(".")[0].rpartition(".")[2].islower()
    }


def stand_between(paths: Iterable[str], wrap: Callable[[Operator], Operator]) -> None:
    """Replaces each function by `wrap` of it, everywhere in fla and in our kernels.

    It holds until `uninstall`, for models that are built already too. Doing it again with the same
    `wrap` changes nothing.

    Args:
        paths: Of the functions, or of methods.
        wrap: Makes a function with the same signature; called once for a function.
    """
    importlib.import_module("fla")
    replacements: dict[int, tuple[Any, Any]] = {}
    for path in paths:
        owner, name, function = _resolve(path)
        if function is None or wrap in getattr(function, "stands_between", ()):
            continue
        replacement: Any = wrap(function)
        replacement.stands_between = (wrap, *getattr(function, "stands_between", ()))
        if isinstance(owner, type):
            _set(owner, name, replacement)
        else:
            replacements[id(function)] = (function, replacement)
    _sweep(replacements, ("fla", "flame_accel.kernels"))
