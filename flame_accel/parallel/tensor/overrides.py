"""Functions in place of fla's for the few that look beyond the heads of one peer.

Each is a class whose instances know the peers and are called like the function that they replace.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, get_rank
from torch.nn import functional

from flame_accel.parallel.tensor.regions import sum_inside


@dataclass(frozen=True, slots=True)
class Retention:
    """Retention with the decays of this peer's heads among all of them (2307.08621)."""

    group: ProcessGroup

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """Head h of all heads decays by 1 - 2^(-5-h) a token.

        Args:
            q: [B, T, H, K], of this peer's heads; k alike, v [B, T, H, V].
            k: Keys.
            v: Values.
            options: Of `fla.ops.simple_gla.chunk_simple_gla`.
        """
        # found when called: the machine's kernels may be installed after this module is imported
        from fla.ops.simple_gla import chunk_simple_gla

        heads = q.shape[2]
        number = torch.arange(heads, dtype=torch.float, device=q.device)
        first = get_rank(self.group) * heads
        decay = 1 - 2.0 ** (-5.0 - first - number)
        attend: Any = chunk_simple_gla
        return attend(q, k, v, g_gamma=decay.log(), **options)


@dataclass(frozen=True, slots=True)
class NormLinear:
    """RMSNorm over the features of all peers, and this peer's share of a projection of them."""

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
        """Normalises in fp32, as fla does, and multiplies in the dtype of the projection.

        Args:
            x: [..., D], this peer's features.
            norm_weight: [D], or None.
            norm_bias: None in all models that are split.
            linear_weight: [out, D].
            linear_bias: None in all models that are split.
            eps: Added to the mean square.

        Returns:
            [..., out], to be summed over the peers.
        """
        assert norm_bias is None and linear_bias is None
        features = x.float()
        squares = sum_inside(features.square().sum(-1, keepdim=True), self.group)
        mean = squares / (features.shape[-1] * self.group.size())
        normed = features * torch.rsqrt(mean + eps)
        if norm_weight is not None:
            normed = normed * norm_weight
        return functional.linear(normed.to(x.dtype), linear_weight)
