"""Lists the functions that fla's layers call to compute, as installed, and wraps them.

They are Triton's or PyTorch's. Operators are those that carry the cost of a model: fla's sequence
mixers and softmax attention. Norms, gates and activations, computed token by token, and
convolutions over a few neighbours are not among them. What a wrapper is for is not known here.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from flame_accel.kernels.install import (
    Replacement,
    _replace_in_loaded_modules,
    _resolve_attribute_value_or_none,
    _set_attribute_with_undo,
)
from flame_accel.kernels.replacements import (
    FIXES_EVERYWHERE,
    REPLACEMENTS,
    REPLACEMENTS_WITHOUT_FLASH_ATTN,
)

Operator = Callable[..., Any]

LIGHT_FUNCTIONS = {
    "create_block_mask",
    "chunk_global_cumsum",
    "fused_gdn_gate",
    "fused_addcmul_rwkv7",
    "fused_additive_gate",
    "fused_k_rwkv7",
    "fused_kda_gate",
    "gate_output_correction",
    "transform",
}
"""Functions of the operators' families, by our names, that mix no tokens or only add them up."""

OUTSIDE_OF_FLA = (
    "flame_accel.kernels.recurrence.mamba.selective_scan",
    "flame_accel.kernels.fused.mamba2.mix_projected",
    "flame_accel.kernels.fused.rwkv7_mixer.mix_heads_and_project_output",
)
"""Operators of ours that fla has no name for."""


DOCUMENT_BY_DOCUMENT = (
    "fla.layers.abc.ABCAttention.__call__",
    "fla.layers.log_linear_mamba2.LogLinearMamba2.forward",
    "fla.layers.mamba3.Mamba3.forward",
    "fla.layers.mom.MomAttention.forward",
)
"""Methods of layers that split a batch into parts whose lengths depend on its contents."""


def layer_function_paths() -> list[str]:
    """Dotted paths of all functions that fla's layers call; some may lead nowhere."""
    return [*_our_paths_by_replaced_function(), *OUTSIDE_OF_FLA]


def sequence_mixer_paths() -> list[str]:
    """Those of `layer_function_paths` that are operators."""
    operators = [
        path
        for path, ours in _our_paths_by_replaced_function().items()
        if not ours.startswith("modules.") and ours.rpartition(".")[2] not in LIGHT_FUNCTIONS
    ]
    return [*operators, *OUTSIDE_OF_FLA]


def _our_paths_by_replaced_function() -> dict[str, str]:
    """All replaced functions: fla's dotted path -> ours. Methods of layers are left out."""
    tables = (REPLACEMENTS, REPLACEMENTS_WITHOUT_FLASH_ATTN, FIXES_EVERYWHERE)
    return {
        f"fla.{theirs}": ours
        for table in tables
        for theirs, ours in table.items()
        if theirs.rpartition(".")[0].rpartition(".")[2].islower()
    }


def wrap_functions(paths: Iterable[str], wrap: Callable[[Operator], Operator]) -> None:
    """Replaces each function with `wrap(function)`, everywhere in fla and in our kernels.

    Lasts until `uninstall`, also for models that are already built. Wrapping again with the same
    `wrap` changes nothing.

    Args:
        paths: Dotted paths of functions or methods.
        wrap: Returns a function with the same signature; called once per function.
    """
    importlib.import_module("fla")
    replacements: dict[int, Replacement] = {}
    for path in paths:
        owner, name, function = _resolve_attribute_value_or_none(path)
        if function is None or wrap in getattr(function, "wrapped_by", ()):
            continue
        replacement: Any = wrap(function)
        replacement.wrapped_by = (wrap, *getattr(function, "wrapped_by", ()))
        if isinstance(owner, type):
            _set_attribute_with_undo(owner, name, replacement)
        else:
            replacements[id(function)] = Replacement(function, replacement)
            ours = getattr(function, "implementation", None)
            if ours is not None:
                # our layers call it without fla's name
                replacement.implementation = wrap(ours)
                replacements[id(ours)] = Replacement(ours, replacement.implementation)
    _replace_in_loaded_modules(replacements, ("fla", "flame_accel.kernels"))
