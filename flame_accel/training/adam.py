"""AdamW and Adam, element by element on the shares of the weights that this rank holds.

torch's own update works on lists of tensors, and refuses lists that mix plain tensors with sharded
ones or sharded ones of two meshes, which is what tensor parallelism and parameters kept whole
beside FSDP2 give. No element of the update looks at another, so that the local shares are all it
takes; the state stays sharded like the weights, for checkpoints.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def local_share(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory: all of it unless it is sharded."""
    # no history is wanted, and to_local would give it one
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: Tensor) -> Tensor:
    """The gradient of the elements that this rank holds of a parameter."""
    gradient = parameter.grad
    assert gradient is not None
    if isinstance(gradient, DTensor) and isinstance(parameter, DTensor):
        # of a weight that tensor parallelism replicates, each peer may have a summand only
        gradient = gradient.redistribute(placements=parameter.placements)
    return local_share(gradient)


class Adam(torch.optim.Adam):
    """Adam (https://arxiv.org/abs/1412.6980); weight decay is added to the gradient (L2)."""

    def _init_group(
        self,
        group: dict[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        *states: list[Tensor],
    ) -> bool:
        has_complex = super()._init_group(group, params_with_grad, grads, *states)
        grads[:] = [local_gradient(parameter) for parameter in params_with_grad]
        for tensors in (params_with_grad, *states):
            tensors[:] = [local_share(tensor) for tensor in tensors]
        return has_complex


class AdamW(Adam, torch.optim.AdamW):
    """AdamW (https://arxiv.org/abs/1711.05101): weights decay beside the gradient's update."""
