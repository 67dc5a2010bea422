"""RWKV-7's projections of mixes with the token before; their backward pass keeps the input alone.

(2503.14456). Mixes are computed again. Shapes: B batch, T tokens, M = B T, N channels, I mixes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flame_accel.kernels.fused.token_mix import mix_gradients, mix_with_previous_token


class Projections(NamedTuple):
    """Outputs of `project_mixes` [M, ...]."""

    r: Tensor
    k: Tensor
    v: Tensor
    w: Tensor
    """Narrow halves of the low rank maps."""
    a: Tensor
    g: Tensor
    mix: Tensor | None


class _MixedProjections(torch.autograd.Function):
    """Linear maps of mixes; keeps the input alone. All of one dtype, autocast off."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, starts: Tensor, mus: Tensor, sources: tuple[int, ...], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        mixes = mix_with_previous_token(x, starts, mus)
        ctx.save_for_backward(x, starts, mus, *weights)
        ctx.sources = sources
        return tuple(mixes[i] @ w.t() for i, w in zip(sources, weights, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, starts, mus, *weights = ctx.saved_tensors
        mixes = mix_with_previous_token(x, starts, mus)
        dmixes = torch.empty_like(mixes)
        dweights, written = [], set()
        for i, weight, grad in zip(ctx.sources, weights, grads, strict=True):
            if i in written:
                dmixes[i].addmm_(grad, weight)
            else:
                torch.mm(grad, weight, out=dmixes[i])
            written.add(i)
            dweights.append(grad.t() @ mixes[i])
        del mixes
        found = mix_gradients(x, starts, mus, dmixes)
        return found.x, None, found.mus, None, *dweights


def project_mixes(
    x: Tensor, starts: Tensor, mus: Tensor, sources: tuple[int, ...], weights: list[Tensor]
) -> Projections:
    """All projections of a layer; those without a weight are None.

    Args:
        x: [B, T, N], contiguous.
        starts: As of `mark_document_starts_as_int8`.
        mus: [I, N].
        sources: Which mix each weight reads.
        weights: Of the dtype of `x`, in the order of `Projections`.
    """
    found = _MixedProjections.apply(x, starts, mus, sources, *weights)
    return Projections(*found, *[None] * (len(Projections._fields) - len(found)))
