"""Test-time training of a linear map under fla's names: one gradient step per mini-batch.

A state is the map k -> k H + h. Its loss on a token is that of normalising k H + h to v - k, with
weight w and bias b; its gradient with respect to k H + h is d (Sun et al., arXiv 2407.04620). With
the state before a mini-batch of C tokens, and learning rates e_t:

    o_t = q_t H + h - e_t sum_{s <= t} (q_t . k_s + 1) d_s,    o_t + norm(o_t) w + b
    H' = H - e_C sum_s k_s^T d_s,    h' = h - e_C sum_s d_s

As in fla, a last mini-batch that is not full goes on with tokens of zeros, which count for h'.
Gradients by autograd. Shape letters: B batch, T tokens, N sequences, H heads, D width, C tokens of
a mini-batch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.sequences import count_sequences, split_sequences


@without_autocast
def chunk_ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor,
    eta: Tensor | float,
    scale: float | None = None,
    eps: float = 1e-6,
    chunk_size: int = 16,
    initial_state: Tensor | None = None,
    initial_state_bias: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Outputs [B, T, H, D] in the dtype of `q`, final maps [N, H, D, D] and [N, H, 1, D] or None.

    Args:
        q: [B, T, H, D].
        k: [B, T, H, D].
        v: [B, T, H, D].
        w: [H, D].
        b: [H, D].
        eta: learning rates [B, T, H, 1], or one for all.
        scale: factor of q; 1 / sqrt(D) if None.
        eps: of the normalisation.
        chunk_size: tokens of a mini-batch; the result depends on it.
        initial_state: [N, H, D, D]; zeros if None.
        initial_state_bias: [N, H, 1, D]; zeros if None.
        output_final_state: whether to return the final maps.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    _, _, heads, width = v.shape
    number = count_sequences(q.shape[0], cu_seqlens)
    if initial_state is None:
        initial_state = q.new_zeros(number, heads, width, width, dtype=torch.float32)
    if initial_state_bias is None:
        initial_state_bias = q.new_zeros(number, heads, 1, width, dtype=torch.float32)
    rates = eta if isinstance(eta, Tensor) else torch.full_like(q[..., :1], eta)
    queries = q.float() * (width**-0.5 if scale is None else scale)
    norm = _Norm(w.float().unsqueeze(1), b.float().unsqueeze(1), eps)
    inputs = (queries, k.float(), v.float(), rates.float())
    sequences = zip(*(split_sequences(x, cu_seqlens) for x in inputs), strict=True)
    rows = number if cu_seqlens is None else 1
    starts = (initial_state.float().split(rows), initial_state_bias.float().split(rows))
    results = [
        _train_on_mini_batches([x.transpose(1, 2) for x in sequence], h, bias, norm, chunk_size)
        for sequence, h, bias in zip(sequences, *starts, strict=True)
    ]
    o = torch.cat([result.outputs for result in results], 2)
    weights = torch.cat([result.weight for result in results])
    biases = torch.cat([result.bias for result in results])
    o = (
        (o + norm.normalize_without_weight_and_bias(o) * norm.weight + norm.bias)
        .transpose(1, 2)
        .to(q.dtype)
    )
    return (o, weights, biases) if output_final_state else (o, None, None)


class _Norm(NamedTuple):
    """The layer norm of a head; parameters [H, 1, D]."""

    weight: Tensor
    bias: Tensor
    eps: float

    def normalize_without_weight_and_bias(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def gradient_of_loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Of half the squared distance of the normalised x [.., H, C, D] to the target."""
        centered = x - x.mean(-1, keepdim=True)
        std = (centered.square().mean(-1, keepdim=True) + self.eps).sqrt()
        normed = centered / std
        slope = (self.weight * normed + self.bias - target) * self.weight
        along = normed * (slope * normed).mean(-1, keepdim=True)
        return (slope - slope.mean(-1, keepdim=True) - along) / std


class _OutputsAndMap(NamedTuple):
    outputs: Tensor
    """[B, H, T, D]"""
    weight: Tensor
    """[B, H, D, D]"""
    bias: Tensor
    """[B, H, 1, D]"""


def _train_on_mini_batches(
    inputs: list[Tensor], weight: Tensor, bias: Tensor, norm: _Norm, chunk_size: int
) -> _OutputsAndMap:
    """q, k, v [B, H, T, D] and rates [B, H, T, 1] of sequences of equal length, from a map."""
    outputs = [inputs[0][:, :, :0]]
    for q, k, v, rates in zip(*(x.split(chunk_size, 2) for x in inputs), strict=True):
        if not q.shape[2]:
            break
        tokens, last = q.shape[2], rates[:, :, -1:]
        q, k, v, rates = (F.pad(x, (0, 0, 0, chunk_size - tokens)) for x in (q, k, v, rates))
        d = norm.gradient_of_loss(k @ weight + bias, v - k)
        o = q @ weight + bias - (rates * (q @ k.mT + 1).tril()) @ d
        outputs.append(o[:, :, :tokens])
        weight = weight - last * (k.mT @ d)
        bias = bias - last * d.sum(2, keepdim=True)
    return _OutputsAndMap(torch.cat(outputs, 2), weight, bias)
