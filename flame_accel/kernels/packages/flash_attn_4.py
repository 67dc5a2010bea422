"""Causal softmax attention by flash-attn-4, whose kernels are written in CuTe DSL.

It serves the attention of training: as many queries as keys, packed or in rows. Other calls, such
as those of generation, stay with `attention.flash_attention`. The package compiles a kernel at the
first call of a kind, in some seconds, and keeps it in `flash_attn_4/` of flame_accel's cache
folder. Its backward pass adds up the gradients of queries in no fixed order, unless torch is asked
for deterministic algorithms.

Shape letters: B batch, T tokens, N documents, H heads of queries, G heads of keys, D channels.
"""

import importlib
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from flame_accel.kernels.packages.found import package_kernels_are_allowed
from flame_accel.kernels.tuning import flame_accel_cache_folder

logger = logging.getLogger(__name__)

PROVEN_CHANNELS = (64, 128)
"""Channels of a head for which `tests/gpu/test_flash_attn_4.py` compares results."""
SHORTEST = 512
"""Tokens of the longest document, or of rows: shorter ones have kernels of their own."""


Attention = TypeVar("Attention", bound=Callable[..., Tensor])


class PackageFunctions(NamedTuple):
    """The functions of the package that are called."""

    rows: Callable[..., Any]
    documents: Callable[..., Any]


_functions: list[PackageFunctions] = []
_told: set[str] = set()


def activate() -> None:
    """Loads the package: `attend_rows` and `attend_documents` can be called.

    Raises:
        ImportError: Of the package or of what it needs.
    """
    # read when the package is imported
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault(
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(flame_accel_cache_folder() / "flash_attn_4")
    )
    package = importlib.import_module("flash_attn.cute")
    deactivate()
    _functions.append(PackageFunctions(package.flash_attn_func, package.flash_attn_varlen_func))


def deactivate() -> None:
    """No call is served from now on."""
    _functions.clear()
    _told.clear()


def serves_call(
    q: Tensor, k: Tensor, v: Tensor, *, longest: int, left_window: int, right_window: int
) -> bool:
    """Whether a call is to be made here. Of a training run, the log says once why one is not.

    Args:
        q: Queries [..., H, D].
        k: Keys [..., G, D].
        v: Values [..., G, D].
        longest: Tokens of the longest document, or of a row.
        left_window: How many keys before its own a query sees; negative is no limit.
        right_window: How many after its own.
    """
    if not (_functions and package_kernels_are_allowed()):
        return False
    reason = _reason_to_leave_call(q, k, v, longest, left_window, right_window)
    if reason is not None and torch.is_grad_enabled() and reason not in _told:
        _told.add(reason)
        logger.info("PyTorch's softmax attention, and not flash-attn-4, for %s", reason)
    return reason is None


def _reason_to_leave_call(
    q: Tensor, k: Tensor, v: Tensor, longest: int, left_window: int, right_window: int
) -> str | None:
    if not _is_half_on_gpu(q):
        return f"tensors of {q.dtype} on {q.device.type}"
    if q.shape[-1] not in PROVEN_CHANNELS or v.shape[-1] != q.shape[-1]:
        return f"heads of {q.shape[-1]} channels ({v.shape[-1]} of values)"
    if q.shape[:-2] != k.shape[:-2]:
        return "other queries than keys"
    if right_window != 0:
        return "attention that is not causal"
    if longest < SHORTEST:
        return f"documents of less than {SHORTEST} tokens"
    return None


def _is_half_on_gpu(q: Tensor) -> bool:
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


def _kept_out_of_compiled_graphs(function: Attention) -> Attention:
    """As fla keeps its own operators: `torch.compile` would look into the package's compiler."""
    return cast(Attention, torch.compiler.disable(function))


@_kept_out_of_compiled_graphs
def attend_rows(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, window: int) -> Tensor:
    """Causal attention of `q` [B, T, H, D] to `k`, `v` [B, T, G, D].

    Args:
        q: Queries.
        k: Keys; H is a multiple of G.
        v: Values.
        scale: Of the scores; 1 / sqrt(D) if None.
        window: How many keys before its own a query sees; negative is no limit.
    """
    outputs, _ = _functions[0].rows(q, k, v, **_options(scale, window))
    return outputs


@_kept_out_of_compiled_graphs
def attend_documents(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    longest: int,
    scale: float | None,
    window: int,
) -> Tensor:
    """As `attend_rows`, of documents in a row: `q` [T, H, D].

    Args:
        q: Queries.
        k: Keys; H is a multiple of G.
        v: Values.
        cu_seqlens: Boundaries [N + 1], int32; documents may be empty.
        longest: At least the tokens of the longest document.
        scale: Of the scores; 1 / sqrt(D) if None.
        window: How many keys before its own a query sees; negative is no limit.
    """
    outputs, _ = _functions[0].documents(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        **_options(scale, window),
    )
    return outputs


def _options(scale: float | None, window: int) -> dict[str, Any]:
    """A window is left out where there is none: it has kernels of its own."""
    return {
        "softmax_scale": scale,
        "causal": True,
        "window_size": (None if window < 0 else window, None if window < 0 else 0),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
