"""The ends of a model, whose rows are the vocabulary: input embedding, head, and loss.

Their rows are split evenly but for the last peers, which may have fewer. Both keep their parameter
itself as `weight`, so that tied ones are still seen to be the same.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.nn import functional
from transformers import PreTrainedModel

from flame_accel.parallel.tensor.dtensors import local_share, share, subclass_instance
from flame_accel.parallel.tensor.loss import VocabularyParallelLoss
from flame_accel.parallel.tensor.regions import leave


def split_embedding(embedding: nn.Embedding, mesh: DeviceMesh) -> None:
    """Lets an embedding whose rows are split look up all ids: each peer its own, summed."""
    first, length = share(embedding.num_embeddings, mesh)
    padding = embedding.padding_idx
    if padding is not None:
        padding = padding - first if first <= padding < first + length else None

    def forward(self: nn.Embedding, ids: Tensor) -> Tensor:
        weight = local_share(self.weight)
        if not length:
            # an empty share, at the end of an uneven split
            return leave(weight.new_zeros(*ids.shape, weight.shape[-1]), mesh.get_group())
        local = ids - first
        foreign = (local < 0) | (local >= length)
        found = functional.embedding(local.masked_fill(foreign, 0), weight, padding)
        return leave(found.masked_fill(foreign[..., None], 0), mesh.get_group())

    subclass_instance(embedding, {"forward": forward})


def whole_weight(weight: Tensor) -> Tensor:
    """All rows of a weight whose rows are split; every peer's gradient is that of its own rows."""
    assert isinstance(weight, DTensor)
    return weight.redistribute(placements=[Replicate()]).to_local()


def split_head(model: PreTrainedModel, mesh: DeviceMesh, *, loss_parallel: bool) -> None:
    """Lets a model compute its loss from a head whose rows are split.

    Logits, where a caller wants them, are those of the whole vocabulary on every peer.

    Args:
        model: Of fla.
        mesh: Of the peers.
        loss_parallel: The loss is computed without gathering; else from the gathered head.
    """

    def forward(self: nn.Linear, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, whole_weight(self.weight))

    owner: Any = model
    compute = owner._compute_logits_and_loss

    def compute_from_hidden(*args: Any, **kwargs: Any) -> Any:
        return compute(*args, **kwargs | {"fuse_linear_cross_entropy": True})

    subclass_instance(owner.lm_head, {"forward": forward})
    # whatever the config says: the criterion gets hidden states and the head's weight, not logits
    owner._compute_logits_and_loss = compute_from_hidden
    if loss_parallel:
        owner.criterion = VocabularyParallelLoss(mesh)
    else:
        owner.criterion = GatheredHeadLoss(use_l2warp=getattr(model.config, "use_l2warp", False))


class GatheredHeadLoss(nn.Module):
    """fla's fused linear cross entropy on all rows of a head, on every peer alike."""

    def __init__(self, *, use_l2warp: bool) -> None:
        super().__init__()
        self.use_l2warp = use_l2warp
        self.ignore_index = -100
        self.reduction = "mean"

    def forward(
        self, hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The arguments of `VocabularyParallelLoss`."""
        # found when called: the machine's kernels may be installed after this module is imported
        from fla.modules import FusedLinearCrossEntropyLoss

        loss: Any = FusedLinearCrossEntropyLoss(
            ignore_index=self.ignore_index, use_l2warp=self.use_l2warp, reduction=self.reduction
        )
        return loss(hidden, labels, whole_weight(weight), bias)
