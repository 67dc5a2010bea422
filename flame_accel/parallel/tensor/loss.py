"""Cross entropy over a vocabulary that is sharded over the TP ranks; no rank holds all logits.

As in Megatron-LM (1909.08053, section 3): for each position the ranks all-reduce the largest logit,
the sum of the exponentials, and the logit of the target. Gradients are computed in the forward
pass, a chunk of positions at a time, so that only the logits of one chunk are held.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from flame_accel.parallel.tensor.differentiable_collectives import (
    all_reduce_without_gradient,
    copy_to_tp_region,
)
from flame_accel.parallel.tensor.dtensor_parameters import (
    differentiable_shard_or_raise_if_fsdp_sharded,
    tp_shard_start_and_length,
)

CHUNK_LOGITS = 2**25
"""Number of fp32 logits that are held at a time (128 MiB)."""


class VocabParallelLoss(nn.Module):
    """The next-token loss from hidden states and a head that is sharded along the vocabulary.

    fla's models call it in place of their fused linear cross entropy, with the same arguments.
    """

    def __init__(self, mesh: DeviceMesh, ignore_index: int = -100) -> None:
        super().__init__()
        self.mesh = mesh
        self.ignore_index = ignore_index
        self.reduction = "mean"

    def forward(
        self, hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The loss in nats, the same on all TP ranks; 0-dimensional, fp32.

        Args:
            hidden: [..., D], the same on all TP ranks.
            labels: [...], `ignore_index` where there is no target.
            weight: [V, D], a DTensor sharded along dimension 0.
            bias: None in all supported models.
        """
        assert bias is None
        group = self.mesh.get_group()
        rows, local = hidden.flatten(0, -2), differentiable_shard_or_raise_if_fsdp_sharded(weight)
        if torch.is_autocast_enabled(rows.device.type):
            dtype = torch.get_autocast_dtype(rows.device.type)
            rows, local = rows.to(dtype), local.to(dtype)
        targets = labels.flatten()
        first_id = tp_shard_start_and_length(weight.shape[0], self.mesh).start
        nats = _SummedCrossEntropy.apply(
            copy_to_tp_region(rows, group), local, targets, first_id, self.ignore_index, group
        )
        if self.reduction == "sum":
            return nats
        return nats / (targets != self.ignore_index).sum()


class _SummedCrossEntropy(Function):
    """Nats summed over positions; both gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        first_id: int,
        ignore_index: int,
        group: ProcessGroup,
    ) -> Tensor:
        """The sum, 0-dimensional and fp32.

        Args:
            ctx: Of autograd.
            hidden: [N, D].
            weight: [V_local, D], this rank's rows of the head.
            labels: [N].
            first_id: Token id of this rank's first row.
            ignore_index: Label of positions without a target.
            group: The TP group.
        """
        nats = torch.zeros((), device=hidden.device)
        needs_grad = any(ctx.needs_input_grad)
        grad_hidden = torch.zeros_like(hidden) if needs_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        positions = max(1, CHUNK_LOGITS // max(1, len(weight)))
        for start in range(0, len(hidden), positions):
            chunk = slice(start, start + positions)
            valid = labels[chunk] != ignore_index
            terms = _chunk_cross_entropy_terms(
                hidden[chunk], weight, labels[chunk] - first_id, group
            )
            nats += torch.where(valid, terms.log_sum_exp - terms.target_logit, 0.0).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad_logits = torch.where(valid[:, None], terms.grad_logits, 0.0).to(hidden.dtype)
                grad_hidden[chunk] = grad_logits @ weight
                grad_weight += grad_logits.T @ hidden[chunk]
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


class _ChunkTerms(NamedTuple):
    """What the cross entropy of N positions consists of; both logits less the largest one."""

    log_sum_exp: Tensor
    """[N], over the whole vocabulary."""
    target_logit: Tensor
    """[N]."""
    grad_logits: Tensor
    """d nats / d logits [N, V_local], of this rank's logits."""


def _chunk_cross_entropy_terms(
    hidden: Tensor, weight: Tensor, local_targets: Tensor, group: ProcessGroup
) -> _ChunkTerms:
    """The terms of the cross entropy of some positions, all-reduced over a TP group.

    Args:
        hidden: [N, D].
        weight: [V_local, D], this rank's rows of the head.
        local_targets: [N], counted from this rank's first row; those of other ranks lie
            outside of it.
        group: The TP group.
    """
    logits = (hidden @ weight.T).float()
    owned = (local_targets >= 0) & (local_targets < len(weight))
    # an empty shard, at the end of an uneven vocabulary, has no largest logit
    largest = logits.new_full((len(logits),), -torch.inf) if not len(weight) else logits.amax(-1)
    logits -= all_reduce_without_gradient(largest, "max", group)[:, None]
    index = torch.where(owned, local_targets, 0)[:, None]
    picked = torch.zeros_like(largest) if not len(weight) else logits.gather(1, index)[:, 0]
    exponentials = logits.exp_()
    partial = torch.stack([exponentials.sum(-1), torch.where(owned, picked, 0.0)])
    sum_exp, target_logit = all_reduce_without_gradient(partial, "sum", group)
    grad_logits = exponentials.div_(sum_exp[:, None])
    if len(weight):
        grad_logits.scatter_add_(1, index, -owned[:, None].to(grad_logits.dtype))
    return _ChunkTerms(sum_exp.log(), target_logit, grad_logits)
