"""Replacements of the few functions of fla that look beyond the heads of one TP rank.

Each is a class whose instances know the TP group and are called like the function they replace.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, get_rank
from torch.nn import functional

from flame_accel.parallel.tensor.differentiable_collectives import all_reduce_forward_and_backward


@dataclass(frozen=True, slots=True)
class ShardedRetention:
    """Retention of this rank's heads, whose decays follow from their index among all heads.

    The decays are those of RetNet (2307.08621).
    """

    group: ProcessGroup

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """Retention in which head h of all heads decays by 1 - 2^(-5-h) per token.

        Args:
            q: [B, T, H, K], of this rank's heads.
            k: [B, T, H, K].
            v: [B, T, H, V].
            options: Of `fla.ops.simple_gla.chunk_simple_gla`.

        Returns:
            Outputs [B, T, H, V] and the final state, if `options` ask for one.
        """
        # found when called: the machine's kernels may be installed after this module is imported
        from fla.ops.simple_gla import chunk_simple_gla

        heads = q.shape[2]
        index = torch.arange(heads, dtype=torch.float, device=q.device)
        first = get_rank(self.group) * heads
        decay = 1 - 2.0 ** (-5.0 - first - index)
        attend: Any = chunk_simple_gla
        return attend(q, k, v, g_gamma=decay.log(), **options)


@dataclass(frozen=True, slots=True)
class ShardedNormLinear:
    """RMSNorm over the features of all TP ranks, then a rowwise-sharded projection of them."""

    group: ProcessGroup

    def __call__(
        self,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        eps: float = 1e-5,
    ) -> Tensor:
        """Normalizes in fp32, as fla does, and multiplies in the dtype of the projection.

        Args:
            x: [..., D], this rank's features.
            norm_weight: [D], or None.
            norm_bias: None in all supported models.
            linear_weight: [out, D].
            linear_bias: None in all supported models.
            eps: Added to the mean square.

        Returns:
            [..., out], a summand that still has to be reduced over the TP group.
        """
        assert norm_bias is None and linear_bias is None
        features = x.float()
        squares = all_reduce_forward_and_backward(
            features.square().sum(-1, keepdim=True), self.group
        )
        mean = squares / (features.shape[-1] * self.group.size())
        normed = features * torch.rsqrt(mean + eps)
        if norm_weight is not None:
            normed = normed * norm_weight
        return functional.linear(normed.to(x.dtype), linear_weight)
