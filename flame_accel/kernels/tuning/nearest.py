"""Candidates for a kernel that is not tuned for its shape, the most promising first.

Every candidate computes the same, or fla's own autotuner could not choose among them: a wrong guess
here is slow at worst. A candidate may still ask for more shared memory or registers than a shape
leaves, so `tuner` takes the first that runs.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from flame_accel.kernels.tuning.tuned_configs import (
    JsonKey,
    Key,
    TritonConfig,
    TunedEntry,
    key_to_json_list,
)

SMALLEST_BLOCK = 16
"""Narrowest operand of a matrix product in Triton."""


class KeyDistance(NamedTuple):
    """How far apart two keys of one kernel are; the fields count in their order."""

    mismatches: int
    """Flags that differ, and floating-point tensors that only one of them has."""
    octaves: float
    """Sum of |log2| of the ratios of all sizes."""
    index_tensors: int
    """Integer tensors that only one of them has: the boundaries of packed documents."""


def sort_candidates_by_block_fit_then_nearness(
    candidates: Sequence[TritonConfig],
    entries: Sequence[TunedEntry],
    key: Key,
    launch_arguments: Mapping[str, Any],
) -> list[TritonConfig]:
    """Sorts the candidates of a kernel by how well they may fit its shape.

    First come those whose blocks are no wider than the tensors, in both groups first the
    configurations of the nearest entries, then the rest in the order of the kernel's author.

    Args:
        candidates: Triton's `Config` objects.
        entries: What the kernel was tuned for, on GPUs like this one.
        key: Values and dtypes of this launch.
        launch_arguments: Arguments of this launch by name.
    """
    wanted = key_to_json_list(key)
    distances = [
        (d, entry)
        for entry in entries
        if (d := key_distance_unless_lengths_differ(entry.key, wanted)) is not None
    ]
    distances.sort(key=lambda pair: pair[0])
    known = [dict(entry.config) for _, entry in distances]
    described = [config_to_fla_dict(candidate) for candidate in candidates]
    ranks = [known.index(config) if config in known else len(known) for config in described]
    order = sorted(
        range(len(candidates)),
        key=lambda i: (
            not blocks_fit_dimensions(candidates[i].kwargs, launch_arguments),
            ranks[i],
            i,
        ),
    )
    return [candidates[i] for i in order]


def key_distance_unless_lengths_differ(key: JsonKey, other_key: JsonKey) -> KeyDistance | None:
    """The distance of two keys as JSON reads them; None if they do not have the same arguments."""
    values, dtypes = _split_values_and_dtypes(key)
    other_values, other_dtypes = _split_values_and_dtypes(other_key)
    if len(values) != len(other_values):
        return None
    mismatches, octaves = 0, 0.0
    for value, other_value in zip(values, other_values, strict=True):
        if _is_positive_int(value) and _is_positive_int(other_value):
            octaves += abs(math.log2(value / other_value))
        elif value != other_value or type(value) is not type(other_value):
            mismatches += 1
    unshared = (dtypes - other_dtypes) + (other_dtypes - dtypes)
    index_tensors = sum(n for dtype, n in unshared.items() if dtype.startswith("torch.int"))
    return KeyDistance(mismatches + unshared.total() - index_tensors, octaves, index_tensors)


def blocks_fit_dimensions(
    block_sizes: Mapping[str, Any], launch_arguments: Mapping[str, Any]
) -> bool:
    """Whether no block is wider than the dimension that it cuts: `BK` cuts `K`, and so on.

    A dimension counts as its next power of two, as blocks are, and at least as `SMALLEST_BLOCK`.
    """
    for name, block in block_sizes.items():
        size = launch_arguments.get(name[1:]) if name.startswith("B") else None
        if _is_positive_int(size) and _is_positive_int(block):
            widest = max(SMALLEST_BLOCK, 1 << (size - 1).bit_length())
            if block > widest:
                return False
    return True


def config_to_fla_dict(config: TritonConfig) -> dict[str, Any]:
    """One of Triton's `Config` objects in fla's format."""
    return {
        "kwargs": dict(config.kwargs),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "num_ctas": config.num_ctas,
        "maxnreg": config.maxnreg,
        "ir_override": config.ir_override,
    }


class _KeyParts(NamedTuple):
    values: list[Any]
    """Of the kernel's key arguments."""
    tensors_by_dtype: Counter[str]


def _split_values_and_dtypes(key: JsonKey) -> _KeyParts:
    num_values = next(
        (i for i, value in enumerate(key) if str(value).startswith("torch.")), len(key)
    )
    return _KeyParts(key[:num_values], Counter(str(dtype) for dtype in key[num_values:]))


def _is_positive_int(value: Any) -> TypeGuard[int]:
    """Whether this is a number of elements; booleans are flags."""
    return type(value) is int and value > 0
