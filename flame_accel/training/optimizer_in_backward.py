"""The optimizer applied within the backward pass, parameter by parameter.

A gradient is used and freed as soon as it is complete, so that those of all parameters never exist
together. Nothing can look at all of them before the first update: no clipping, no guard against
non-finite values, no accumulation (`config.validation` refuses them beside it).
"""

from functools import partial
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.distributed import all_reduce, get_world_size, is_initialized
from torch.distributed.tensor import DTensor

from flame_accel.training.adam import Adam, local_gradient


def optimizer_in_backward(optimizer: AcceleratedOptimizer) -> None:
    """Hooks the parameters of a prepared optimizer, if it is one that steps in backward."""
    inner = optimizer.optimizer
    if isinstance(inner, OptimizerInBackward):
        inner.install(optimizer.accelerator_state.device)


class OptimizerInBackward(Adam):
    """Adam, or AdamW with `decoupled_weight_decay`, updating in hooks of the backward pass."""

    def install(self, device: torch.device) -> None:
        """Hooks the parameters that the optimizer holds, once, after they have been sharded.

        Where some are sharded, those that are not wait for `finish_step`: a backward pass gives
        their gradients before the ranks have averaged them.

        Args:
            device: Where the norm is wanted; weights may wait in CPU memory.
        """
        self._device = device
        self._norms: list[Tensor] = []
        parameters = [p for group in self.param_groups for p in group["params"]]
        some_sharded = any(isinstance(p, DTensor) for p in parameters)
        for group in self.param_groups:
            for parameter in group["params"]:
                if isinstance(parameter, DTensor) or not some_sharded:
                    hook = partial(self._step_one, group)
                    parameter.register_post_accumulate_grad_hook(hook)

    @torch.no_grad()
    def _step_one(self, group: dict[str, Any], parameter: Tensor) -> None:
        gradient = local_gradient(parameter)
        if gradient.device.type == "cuda":
            # FSDP2 calls from a stream that need not be the one that the gradient was made in
            gradient.record_stream(torch.cuda.current_stream())
        self._note_norm(parameter)
        groups = self.param_groups
        self.param_groups = [{**group, "params": [parameter]}]
        self.step()
        self.param_groups = groups
        parameter.grad = None

    def _note_norm(self, parameter: Tensor) -> None:
        """Keeps the L2 norm of a gradient, such that squares add up over elements and ranks."""
        norm = torch.linalg.vector_norm(local_gradient(parameter))
        self._norms.append(norm.to(self._device) / _copies(parameter) ** 0.5)

    @torch.no_grad()
    def finish_step(self) -> tuple[Tensor, Tensor]:
        """Updates what the backward pass has left.

        Returns:
            The norm of the gradient that the hooks saw, and 0.0: nothing is skipped.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._note_norm(parameter)
        self.step()
        self.zero_grad()
        norm = torch.linalg.vector_norm(torch.stack(self._norms))
        self._norms.clear()
        if is_initialized() and get_world_size() > 1:
            square = norm**2
            all_reduce(square)
            norm = square.sqrt()
        return norm, torch.zeros_like(norm)


def _copies(parameter: Tensor) -> int:
    """Number of ranks that hold each element of a parameter."""
    if not is_initialized():
        return 1
    shards = 1
    if isinstance(parameter, DTensor):
        for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True):
            shards *= 1 if placement.is_replicate() else size
    return get_world_size() // shards
