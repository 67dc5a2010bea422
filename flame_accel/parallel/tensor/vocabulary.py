"""The vocabulary-parallel ends of a model: input embedding, head and loss.

Their rows, one per token id, are sharded evenly but for the last TP ranks, which may have fewer.
Both keep the DTensor itself as `weight`, so that tied ones are still seen to be the same.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.nn import functional
from transformers import PreTrainedModel

from flame_accel.parallel.tensor.differentiable_collectives import reduce_from_tp_region
from flame_accel.parallel.tensor.dtensor_parameters import (
    differentiable_shard_or_raise_if_fsdp_sharded,
    tp_shard_start_and_length,
)
from flame_accel.parallel.tensor.instance_patching import subclass_instance_in_place
from flame_accel.parallel.tensor.loss import VocabParallelLoss


def replace_forward_of_sharded_embedding(embedding: nn.Embedding, mesh: DeviceMesh) -> None:
    """Makes an embedding with a sharded weight look up all ids, in place.

    Each rank looks up the ids of its own rows, and the results are summed over the TP group.
    """
    first_id, num_ids = tp_shard_start_and_length(embedding.num_embeddings, mesh)
    padding = embedding.padding_idx
    if padding is not None:
        padding = padding - first_id if first_id <= padding < first_id + num_ids else None

    def forward(self: nn.Embedding, ids: Tensor) -> Tensor:
        weight = differentiable_shard_or_raise_if_fsdp_sharded(self.weight)
        if not num_ids:
            # an empty shard, at the end of an uneven vocabulary
            zeros = weight.new_zeros(*ids.shape, weight.shape[-1])
            return reduce_from_tp_region(zeros, mesh.get_group())
        local_ids = ids - first_id
        foreign = (local_ids < 0) | (local_ids >= num_ids)
        found = functional.embedding(local_ids.masked_fill(foreign, 0), weight, padding)
        return reduce_from_tp_region(found.masked_fill(foreign[..., None], 0), mesh.get_group())

    subclass_instance_in_place(embedding, {"forward": forward})


def gather_full_weight(weight: Tensor) -> Tensor:
    """All rows of a sharded weight [V, D], differentiable: each rank's rows get their gradient."""
    assert isinstance(weight, DTensor)
    return weight.redistribute(placements=[Replicate()]).to_local()


def replace_head_forward_and_loss(
    model: PreTrainedModel, mesh: DeviceMesh, *, loss_parallel: bool
) -> None:
    """Makes a model compute its loss from a head with a sharded weight, in place.

    Logits, where a caller wants them, are those of the whole vocabulary on every rank.

    Args:
        model: A causal language model of fla.
        mesh: The one-dimensional TP mesh.
        loss_parallel: Compute the loss from sharded logits; else from the gathered head.
    """

    def forward(self: nn.Linear, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, gather_full_weight(self.weight))

    owner: Any = model
    compute = owner._compute_logits_and_loss

    subclass_instance_in_place(owner.lm_head, {"forward": forward})
    # whatever the config says: the criterion gets hidden states and the head's weight, not logits
    owner._compute_logits_and_loss = lambda *args, **kwargs: compute(
        *args, **kwargs | {"fuse_linear_cross_entropy": True}
    )
    if loss_parallel:
        owner.criterion = VocabParallelLoss(mesh)
    else:
        owner.criterion = GatheredHeadLoss(use_l2warp=getattr(model.config, "use_l2warp", False))


class GatheredHeadLoss(nn.Module):
    """fla's fused linear cross entropy on the gathered head, computed alike on every TP rank."""

    def __init__(self, *, use_l2warp: bool) -> None:
        super().__init__()
        self.use_l2warp = use_l2warp
        self.ignore_index = -100
        self.reduction = "mean"

    def forward(
        self, hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The loss in nats; arguments as those of `VocabParallelLoss.forward`."""
        # found when called: the machine's kernels may be installed after this module is imported
        from fla.modules import FusedLinearCrossEntropyLoss

        loss: Any = FusedLinearCrossEntropyLoss(
            ignore_index=self.ignore_index, use_l2warp=self.use_l2warp, reduction=self.reduction
        )
        return loss(hidden, labels, gather_full_weight(weight), bias)
