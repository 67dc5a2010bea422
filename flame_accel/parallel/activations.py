"""Activations that are recomputed in the backward pass instead of kept.

What a block keeps is its inputs; its forward pass runs again when the backward pass gets to it
(torch's checkpoint without reentrance). `full` does so for every block, `n` for every n-th.

"op" spares the operators, which cost most of a forward pass (`kernels/operators.py`): in the first
pass an operator runs outside of the checkpoint, so that what it saves for its backward pass is kept
indeed, and its outputs are remembered; in the second pass the call returns them and runs nothing.
torch's own selective checkpoint cannot do this: it sees aten's operators only, and fla's are
autograd functions around Triton kernels. No operator draws random numbers, so that to leave one out
changes nothing for the dropout behind it.

What is compiled lies within the checkpoint.
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from flame_accel.config import ActivationCheckpointConfig, UserError
from flame_accel.kernels.operators import Operator, operator_paths, stand_between
from flame_accel.parallel.blocks import find_blocks, replace_forward

RECOMPUTING = ("log_linear_mamba2",)
"""Model types of fla whose layers have a checkpoint of their own around their operator."""


def checkpoint_activations(model: PreTrainedModel, config: ActivationCheckpointConfig) -> None:
    """Makes the blocks of a model recompute their activations, in place.

    Args:
        model: For "op" one of fla's layers; else any whose blocks are known (see `find_blocks`).
        config: With a mode other than "none".

    Raises:
        UserError: The model has no such blocks or operators.
    """
    blocks = find_blocks(model, where="activation_checkpoint.mode")
    option = config.selective_ac_option
    keeping = config.mode == "selective" and option == "op"
    every = int(option) if config.mode == "selective" and not keeping else 1
    if keeping:
        _check_no_kv_cache(model)
        stand_between(operator_paths(), _keep_results)
    if every > len(blocks):
        raise UserError(
            f"the model has {len(blocks)} blocks, so that there is no every {every}th",
            where="activation_checkpoint.selective_ac_option",
            remedy=f"give a number up to {len(blocks)}",
            exit_code=2,
        )
    contexts = {"context_fn": _two_passes} if keeping else {}
    for block in blocks[every - 1 :: every]:
        replace_forward(
            block,
            functools.partial(checkpoint, block.forward, use_reentrant=False, **contexts),
        )


def _check_no_kv_cache(model: PreTrainedModel) -> None:
    reason = f"{type(model).__name__} calls none of fla's operators, whose results op keeps"
    if any(type(module).__module__.startswith("fla.") for module in model.modules()):
        if model.config.model_type not in RECOMPUTING:
            return
        reason = f"the layers of {type(model).__name__} recompute their operator themselves"
    raise UserError(
        reason,
        where="activation_checkpoint.selective_ac_option",
        remedy="give a number n for every n-th block, or activation_checkpoint.mode full",
        exit_code=2,
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor that an operator has returned, without its history, which would keep it for ever."""

    tensor: Tensor
    needs_grad: bool
    version: int
    """Counts what is written to the tensor."""


class _Pass:
    """One pass through a block: the first, which notes down results, or a later one."""

    def __init__(self, results: list[tuple[Operator, Any]], *, first: bool) -> None:
        self.results = results
        self.first = first

    def __enter__(self) -> None:
        self.position = 0
        self.around, _running.now = _running.now, self

    def __exit__(self, *exception: object) -> None:
        _running.now = self.around

    def call(self, operator: Operator, args: Any, kwargs: Any) -> Any:
        """Calls an operator, or returns again what it has returned in the first pass."""
        if self.first:
            return self._note(operator, args, kwargs)
        noted, kept = self.results[self.position]
        self.position += 1
        if noted is not operator:
            raise RuntimeError(f"a block called {noted} first, and {operator} when recomputed")
        return _each(kept, _give_again)

    def _note(self, operator: Operator, args: Any, kwargs: Any) -> Any:
        # operators that this one calls are part of it
        _running.now = None
        try:
            with saved_tensors_hooks(_itself, _itself):
                outputs = operator(*args, **kwargs)
        finally:
            _running.now = self
        self.results.append((operator, _each(outputs, _keep)))
        return outputs


class _Running(threading.local):
    """The pass that a thread is in: backward passes have threads of their own."""

    now: _Pass | None = None


_running = _Running()


def _two_passes() -> tuple[_Pass, _Pass]:
    results: list[tuple[Operator, Any]] = []
    return _Pass(results, first=True), _Pass(results, first=False)


# compiled blocks are left to call an operator, and entered again behind it
def _keep_results(operator: Operator) -> Operator:
    """An operator that in a block with "op" keeps its results; elsewhere it is as it was."""

    @torch.compiler.disable
    @functools.wraps(operator)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _running.now is None:
            return operator(*args, **kwargs)
        return _running.now.call(operator, args, kwargs)

    return call


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _keep(tensor: Tensor) -> _Kept:
    return _Kept(tensor.detach(), tensor.requires_grad, tensor._version)


def _give_again(kept: _Kept) -> Tensor:
    if kept.tensor._version != kept.version:
        raise RuntimeError("a block wrote to the result of an operator, which it needs again")
    return kept.tensor.detach().requires_grad_(kept.needs_grad)


def _each(outputs: Any, change: Callable[[Any], Any]) -> Any:
    """What an operator returns, with each of its tensors changed."""
    if outputs is None:
        return None
    if isinstance(outputs, (tuple, list)):
        changed = [_each(output, change) for output in outputs]
        return changed if isinstance(outputs, list) else tuple(changed)
    return change(outputs)
