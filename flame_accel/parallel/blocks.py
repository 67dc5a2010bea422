"""The blocks of a model: the units that are recomputed, compiled and sharded.

To change how a block runs, its `forward` is replaced on the instance: names of parameters do not
change, and hooks of FSDP2 and DeepSpeed run around it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from flame_accel.config import UsageError

Forward = Callable[..., Any]


def find_blocks(model: PreTrainedModel, *, needed_by_option: str) -> list[nn.Module]:
    """The outermost modules that the architecture declares to be blocks, first to last.

    It declares them in `_no_split_modules`, or derives them from `GradientCheckpointingLayer`.

    Args:
        model: Sharded or not.
        needed_by_option: The option that needs blocks, for the message.

    Raises:
        UserError: The architecture declares none.
    """
    blocks = list(_find_outermost_blocks(model, frozenset(model._no_split_modules or ())))
    if not blocks:
        raise UsageError(
            f"{type(model).__name__} does not declare which of its modules are blocks",
            where=needed_by_option,
            remedy="name their classes in its _no_split_modules, or remove the option",
        )
    return blocks


def _find_outermost_blocks(
    module: nn.Module, block_class_names: frozenset[str]
) -> Iterator[nn.Module]:
    """The outermost submodules that are blocks, by their class or by one of its names."""
    for child in module.children():
        # sharding derives a class of its own from that of a block
        classes = {base.__name__ for base in type(child).__mro__}
        if isinstance(child, GradientCheckpointingLayer) or block_class_names & classes:
            yield child
        else:
            yield from _find_outermost_blocks(child, block_class_names)


def replace_training_forward_and_drop_caches(block: nn.Module, training_forward: Forward) -> None:
    """Makes a block run `training_forward` in training, and its own forward otherwise; in place.

    In training caches are dropped: nothing reads them, a recomputing pass would write into them
    again, and a compiled block would be recompiled for every length.
    """
    block.forward = partial(
        _call_by_mode_dropping_training_caches, block, block.forward, training_forward
    )


def _call_by_mode_dropping_training_caches(
    block: nn.Module,
    original_forward: Forward,
    training_forward: Forward,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return original_forward(*args, **kwargs)
    args = tuple(None if isinstance(arg, Cache) else arg for arg in args)
    kwargs = {name: None if isinstance(arg, Cache) else arg for name, arg in kwargs.items()}
    if kwargs.get("use_cache"):
        kwargs["use_cache"] = False
    return training_forward(*args, **kwargs)
