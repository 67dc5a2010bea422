"""Activation checkpointing: activations that are recomputed in the backward pass, not saved.

A block saves its inputs; its forward runs again when the backward pass reaches it (torch's
non-reentrant checkpoint). "full" checkpoints every block, "n" every n-th.

"op" does not recompute the operators, which cost most of a forward pass (`kernels/wrapping.py`):
in the first pass an operator runs outside of the checkpoint, so that what it saves for its backward
pass is really saved, and so are its outputs; in the recomputing pass the call returns them and runs
nothing. torch's own selective checkpoint cannot do this: it sees aten's operators only, and fla's
are autograd functions around Triton kernels. Operators draw no random numbers, so that leaving them
out does not change the dropout after them.

Compiled code lies inside the checkpoint.
"""

import functools
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from flame_accel.config import ActivationCheckpointConfig, UsageError
from flame_accel.kernels.wrapping import Operator, sequence_mixer_paths, wrap_functions
from flame_accel.parallel.blocks import find_blocks, replace_training_forward_and_drop_caches

SELF_CHECKPOINTING = ("log_linear_mamba2",)
"""Model types of fla whose layers checkpoint their operator themselves."""


def checkpoint_activations(model: PreTrainedModel, config: ActivationCheckpointConfig) -> None:
    """Makes blocks of a model recompute their activations, in place.

    Args:
        model: Has blocks (see `find_blocks`); for "op", layers of fla.
        config: What is recomputed; mode "none" changes nothing.

    Raises:
        UserError: The model has no blocks, fewer than n, or no operators to save.
    """
    if config.mode == "none":
        return
    blocks = find_blocks(model, needed_by_option="activation_checkpoint.mode")
    option = config.selective_ac_option
    saves_operators = config.mode == "selective" and option == "op"
    every = int(option) if config.mode == "selective" and not saves_operators else 1
    if saves_operators:
        _check_has_savable_operators(model)
        wrap_functions(sequence_mixer_paths(), _wrap_to_save_outputs_in_blocks)
    if every > len(blocks):
        raise UsageError(
            f"the model has {len(blocks)} blocks, so that there is no block {every} to recompute",
            where="activation_checkpoint.selective_ac_option",
            remedy=f"give a number of at most {len(blocks)}",
        )
    contexts = {"context_fn": _make_checkpoint_contexts} if saves_operators else {}
    for block in blocks[every - 1 :: every]:
        replace_training_forward_and_drop_caches(
            block,
            functools.partial(checkpoint, block.forward, use_reentrant=False, **contexts),
        )


def _check_has_savable_operators(model: PreTrainedModel) -> None:
    """Checks that a model calls operators whose outputs "op" can save."""
    reason = f"{type(model).__name__} calls none of fla's operators, whose results op saves"
    if any(type(module).__module__.startswith("fla.") for module in model.modules()):
        if model.config.model_type not in SELF_CHECKPOINTING:
            return
        reason = f"the layers of {type(model).__name__} recompute their operator themselves"
    raise UsageError(
        reason,
        where="activation_checkpoint.selective_ac_option",
        remedy="give a number n for every n-th block, or activation_checkpoint.mode full",
    )


@dataclass(frozen=True, slots=True)
class _SavedOutput:
    """A tensor that an operator has returned, without its history, which would keep it alive."""

    tensor: Tensor
    needs_grad: bool
    version: int
    """torch's counter of in-place writes to the tensor."""


class _BlockPass:
    """A pass through a block: the first, which saves operators' outputs, or a recomputing one."""

    def __init__(self, saved: list[tuple[Operator, Any]], *, first: bool) -> None:
        self.saved = saved
        self.first = first

    def __enter__(self) -> None:
        self.position = 0
        self.outer, _thread.block_pass = _thread.block_pass, self

    def __exit__(self, *exception: object) -> None:
        _thread.block_pass = self.outer

    def call_or_restore(
        self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Calls an operator, or returns what it has returned in the first pass."""
        if not self.first:
            first_called, outputs = self.saved[self.position]
            self.position += 1
            if first_called is not operator:
                raise RuntimeError(
                    f"a block called {first_called} at first, and {operator} when recomputed"
                )
            return tree_map_only(_SavedOutput, _restore_output, outputs)
        # operators that this one calls are part of it
        _thread.block_pass = None
        try:
            with saved_tensors_hooks(_identity, _identity):
                outputs = operator(*args, **kwargs)
        finally:
            _thread.block_pass = self
        self.saved.append((operator, tree_map_only(Tensor, _save_output, outputs)))
        return outputs


class _ThreadState(threading.local):
    """The pass that a thread is in; backward passes run in threads of their own."""

    block_pass: _BlockPass | None = None


_thread = _ThreadState()


def _make_checkpoint_contexts() -> tuple[_BlockPass, _BlockPass]:
    """Contexts of the first and the recomputing pass, as torch's checkpoint asks for them."""
    saved: list[tuple[Operator, Any]] = []
    return _BlockPass(saved, first=True), _BlockPass(saved, first=False)


def _wrap_to_save_outputs_in_blocks(operator: Operator) -> Operator:
    """The operator such that its outputs are saved in blocks with "op"; unchanged elsewhere."""

    # a graph break in compiled blocks
    @torch.compiler.disable
    @functools.wraps(operator)
    def call_and_save_within_block(*args: Any, **kwargs: Any) -> Any:
        if _thread.block_pass is None:
            return operator(*args, **kwargs)
        return _thread.block_pass.call_or_restore(operator, args, kwargs)

    return call_and_save_within_block


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _save_output(tensor: Tensor) -> _SavedOutput:
    return _SavedOutput(tensor.detach(), tensor.requires_grad, tensor._version)


def _restore_output(saved: _SavedOutput) -> Tensor:
    if saved.tensor._version != saved.version:
        raise RuntimeError("a block wrote to the result of an operator, which it needs again")
    return saved.tensor.detach().requires_grad_(saved.needs_grad)
