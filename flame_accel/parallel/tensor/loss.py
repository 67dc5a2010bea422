"""Cross entropy over a vocabulary of which every peer has a part; no peer ever has all logits.

As in Megatron-LM (1909.08053, section 3): peers exchange, for each position, the largest logit, the
sum of the exponentials, and the logit of the target. Gradients are computed in the forward pass, a
chunk of positions at a time, so that the logits of a chunk are all that is kept of them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from flame_accel.parallel.tensor.dtensors import local_share, share
from flame_accel.parallel.tensor.regions import enter, reduce_over_peers

CHUNK_LOGITS = 2**25
"""So many fp32 logits are held at a time (128 MiB)."""


class VocabularyParallelLoss(nn.Module):
    """The next-token loss from hidden states and a head whose rows are split.

    Called by fla's models in place of their fused linear cross entropy, with the same arguments.
    """

    def __init__(self, mesh: DeviceMesh, ignore_index: int = -100) -> None:
        super().__init__()
        self.mesh = mesh
        self.ignore_index = ignore_index
        self.reduction = "mean"

    def forward(
        self, hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The same value on all peers; 0-dimensional, fp32.

        Args:
            hidden: [..., D], the same on all peers.
            labels: [...], `ignore_index` where there is no target.
            weight: [V, D], a DTensor whose rows are split.
            bias: None in all models that are split.
        """
        assert bias is None
        group = self.mesh.get_group()
        rows, local = hidden.flatten(0, -2), local_share(weight)
        if torch.is_autocast_enabled(rows.device.type):
            dtype = torch.get_autocast_dtype(rows.device.type)
            rows, local = rows.to(dtype), local.to(dtype)
        targets = labels.flatten()
        first, _ = share(weight.shape[0], self.mesh)
        nats = _SummedNats.apply(
            enter(rows, group), local, targets, first, self.ignore_index, group
        )
        if self.reduction == "sum":
            return nats
        return nats / (targets != self.ignore_index).sum()


class _SummedNats(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        first: int,
        ignore_index: int,
        group: ProcessGroup,
    ) -> Tensor:
        nats = torch.zeros((), device=hidden.device)
        wanted = any(ctx.needs_input_grad)
        grad_hidden = torch.zeros_like(hidden) if wanted else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        positions = max(1, CHUNK_LOGITS // max(1, len(weight)))
        for start in range(0, len(hidden), positions):
            chunk = slice(start, start + positions)
            valid = labels[chunk] != ignore_index
            log_sum, logit, errors = _chunk(hidden[chunk], weight, labels[chunk] - first, group)
            nats += torch.where(valid, log_sum - logit, 0.0).sum()
            if grad_hidden is not None and grad_weight is not None:
                errors = torch.where(valid[:, None], errors, 0.0).to(hidden.dtype)
                grad_hidden[chunk] = errors @ weight
                grad_weight += errors.T @ hidden[chunk]
        ctx.dtype = weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = (grad_hidden * grad).to(grad_hidden.dtype), (grad_weight * grad).to(ctx.dtype)
        return *scaled, None, None, None, None


def _chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Of positions [N]: log sum of exponentials, target's logit, and d nats / d logits [N, V].

    Args:
        hidden: [N, D].
        weight: [V, D], this peer's rows.
        targets: [N], counted from this peer's first row; others' lie outside of 0..V-1.
        group: Of the peers.

    Returns:
        The first two less the largest logit of each position, and the gradient of this peer's.
    """
    logits = (hidden @ weight.T).float()
    owned = (targets >= 0) & (targets < len(weight))
    # an empty share, at the end of an uneven split, has no largest logit
    largest = logits.new_full((len(logits),), -torch.inf) if not len(weight) else logits.amax(-1)
    logits -= reduce_over_peers(largest, "max", group)[:, None]
    index = torch.where(owned, targets, 0)[:, None]
    picked = torch.zeros_like(largest) if not len(weight) else logits.gather(1, index)[:, 0]
    exponentials = logits.exp_()
    partial = torch.stack([exponentials.sum(-1), torch.where(owned, picked, 0.0)])
    total, logit = reduce_over_peers(partial, "sum", group)
    errors = exponentials.div_(total[:, None])
    if len(weight):
        errors.scatter_add_(1, index, -owned[:, None].to(errors.dtype))
    return total.log(), logit, errors
