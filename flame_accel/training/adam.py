"""Adam and AdamW that update, element by element, the local shard of each weight.

torch's own update works on lists of tensors, and refuses lists that mix plain tensors with DTensors
or DTensors of two meshes, as tensor parallelism and parameters that FSDP2 ignores give them. No
element of the update depends on another, so that local shards are enough; the state stays sharded
like the weights, for checkpoints.
"""

import torch
from torch import Tensor

from flame_accel.models.parameter_groups import ParameterGroup
from flame_accel.parallel.sharded_tensors import detached_shard_or_tensor_itself, local_gradient


class AdamOnLocalShards(torch.optim.Adam):
    """Adam (https://arxiv.org/abs/1412.6980); weight decay is added to the gradient (L2)."""

    def _init_group(
        self,
        group: ParameterGroup,
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        *states: list[Tensor],
    ) -> bool:
        """torch's, with every list filled with local tensors in place of DTensors."""
        has_complex = super()._init_group(group, params_with_grad, grads, *states)
        grads[:] = [local_gradient(parameter) for parameter in params_with_grad]
        for tensors in (params_with_grad, *states):
            tensors[:] = [detached_shard_or_tensor_itself(tensor) for tensor in tensors]
        return has_complex


class AdamWOnLocalShards(AdamOnLocalShards, torch.optim.AdamW):
    """AdamW (https://arxiv.org/abs/1711.05101): weights decay separately from the gradient."""
