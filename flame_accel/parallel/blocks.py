"""The blocks of a model: what is recomputed, compiled and sharded as one.

To change how a block runs, its `forward` is replaced on the instance: names of parameters stay what
they are, and hooks of FSDP2 and DeepSpeed run around it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from flame_accel.config import UserError

Forward = Callable[..., Any]


def find_blocks(model: PreTrainedModel, *, where: str) -> list[nn.Module]:
    """The outermost modules that the architecture declares to be blocks, first to last.

    It does so by `_no_split_modules`, or by deriving them from `GradientCheckpointingLayer`.

    Args:
        model: Any.
        where: The option that needs them, for the message.

    Raises:
        UserError: There are none.
    """
    blocks = list(_outermost(model, frozenset(model._no_split_modules or ())))
    if not blocks:
        raise UserError(
            f"{type(model).__name__} does not say which of its modules are blocks",
            where=where,
            remedy="name their classes in its _no_split_modules, or remove the option",
            exit_code=2,
        )
    return blocks


def _outermost(module: nn.Module, names: frozenset[str]) -> Iterator[nn.Module]:
    for child in module.children():
        # sharding derives a class of its own from that of a block
        classes = {base.__name__ for base in type(child).__mro__}
        if isinstance(child, GradientCheckpointingLayer) or names & classes:
            yield child
        else:
            yield from _outermost(child, names)


def replace_forward(block: nn.Module, training_forward: Forward) -> None:
    """Lets a block run `training_forward` in training; otherwise it runs as before.

    In training there is no cache: nothing reads it, a second pass would write into it again, and a
    compiled block would be compiled anew for every length.
    """
    block.forward = partial(_forward, block, block.forward, training_forward)


def _forward(
    block: nn.Module, otherwise: Forward, training_forward: Forward, *args: Any, **kwargs: Any
) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return otherwise(*args, **kwargs)
    args = tuple(None if isinstance(arg, Cache) else arg for arg in args)
    kwargs = {name: None if isinstance(arg, Cache) else arg for name, arg in kwargs.items()}
    if kwargs.get("use_cache"):
        kwargs["use_cache"] = False
    return training_forward(*args, **kwargs)
