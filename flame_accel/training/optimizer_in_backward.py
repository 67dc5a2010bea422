"""The optimizer applied within the backward pass, parameter by parameter.

A gradient is used and freed as soon as it is complete, so that those of all parameters never exist
at the same time. Nothing can look at all of them before the first update: no clipping, no guard
against non-finite values, no accumulation (`config.consistency` rejects these combinations).
"""

from functools import partial

import torch
from torch import Tensor
from torch.distributed import all_reduce, get_world_size, is_initialized
from torch.distributed.tensor import DTensor

from flame_accel.models.parameter_groups import ParameterGroup
from flame_accel.parallel import UpdateResult
from flame_accel.parallel.sharded_tensors import local_gradient, num_ranks_of_run_with_copy
from flame_accel.training.adam import AdamOnLocalShards


class OptimizerInBackward(AdamOnLocalShards):
    """Adam, or AdamW with `decoupled_weight_decay`, updating in hooks of the backward pass."""

    def hook_sharded_else_all_parameters(self, device: torch.device) -> None:
        """Hooks the parameters that the optimizer holds; `parallel.prepare` calls it once.

        Where some are sharded, `update_remaining_and_reduce_norm` updates those that are not: their
        gradients are complete only when the ranks have averaged them, after the backward pass.

        Args:
            device: Device of the gradient norm; weights may be kept in CPU memory.
        """
        self._device = device
        self._norms: list[Tensor] = []
        parameters = [p for group in self.param_groups for p in group["params"]]
        some_sharded = any(isinstance(p, DTensor) for p in parameters)
        for group in self.param_groups:
            for parameter in group["params"]:
                if isinstance(parameter, DTensor) or not some_sharded:
                    hook = partial(self._update_parameter_and_free_gradient, group)
                    parameter.register_post_accumulate_grad_hook(hook)

    @torch.no_grad()
    def _update_parameter_and_free_gradient(self, group: ParameterGroup, parameter: Tensor) -> None:
        """Steps one parameter of a group and frees its gradient; the hook."""
        gradient = local_gradient(parameter)
        if gradient.device.type == "cuda":
            # FSDP2 may call from another stream than the one that made the gradient
            gradient.record_stream(torch.cuda.current_stream())
        self._record_gradient_norm(parameter)
        groups = self.param_groups
        self.param_groups = [{**group, "params": [parameter]}]
        self.step()
        self.param_groups = groups
        parameter.grad = None

    def _record_gradient_norm(self, parameter: Tensor) -> None:
        """Records the L2 norm of a local gradient, scaled so that squares add up over the ranks."""
        norm = torch.linalg.vector_norm(local_gradient(parameter))
        self._norms.append(norm.to(self._device) / num_ranks_of_run_with_copy(parameter) ** 0.5)

    @torch.no_grad()
    def update_remaining_and_reduce_norm(self) -> UpdateResult:
        """Updates the parameters that the backward pass has left; all ranks must call it.

        Returns:
            The norm of the gradient of all ranks; nothing is ever skipped.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._record_gradient_norm(parameter)
        self.step()
        self.zero_grad()
        norm = torch.linalg.vector_norm(torch.stack(self._norms))
        self._norms.clear()
        if is_initialized() and get_world_size() > 1:
            square = norm**2
            all_reduce(square)
            norm = square.sqrt()
        return UpdateResult(norm, torch.zeros_like(norm))
