"""RWKV7 under fla's names and signatures: the recurrence, and what fla fuses around it.

    S_t = diag(exp(w_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T,    o_t = scale * S_t^T r_t

(RWKV-7, arXiv 2503.14456), the generalized delta rule of `dplr`. The token shift, which RWKV6 has
too, is in `modules.token_shift`.

Shape letters: B batch, T tokens, H heads, K key width, V value width, D width of the model or head.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flame_accel.kernels.recurrence.dplr import (
    chunk_dplr_delta_rule,
    fused_recurrent_dplr_delta_rule,
)
from flame_accel.kernels.recurrence.sequences import OutputsAndOptionalStates


def chunk_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """`dplr.chunk_dplr_delta_rule`: queries are receptances `r`, `w` log decays [B, T, H, K]."""
    return chunk_dplr_delta_rule(
        r, k, v, a, b, w, scale, initial_state, output_final_state, cu_seqlens
    )


def fused_mul_recurrent_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    scale: float | None = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """As `chunk_rwkv7` with a = -kk and b = kk * a, for `kk` and strengths `a` [B, T, H, K]."""
    return fused_recurrent_dplr_delta_rule(
        r, k, v, -kk, kk * a, w, scale, initial_state, output_final_state, reverse, cu_seqlens
    )


class _AddScaledDelta(torch.autograd.Function):
    """x + delta * mix_i for several mixes [D]; the backward pass reads each dy_i once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, *mixes: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(delta, *mixes)
        return tuple(torch.addcmul(x, delta, mix).to(x.dtype) for mix in mixes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        delta, *mixes = ctx.saved_tensors
        dx, ddelta = grads[0].to(torch.float32, copy=True), grads[0].float() * mixes[0].float()
        for dy, mix in zip(grads[1:], mixes[1:], strict=True):
            dx += dy
            ddelta.addcmul_(dy.float(), mix.float())
        dmixes = [(dy.float() * delta.float()).sum((0, 1)) for dy in grads]
        dmixes = [d.view(mix.shape).to(mix.dtype) for d, mix in zip(dmixes, mixes, strict=True)]
        return dx.to(grads[0].dtype), ddelta.to(delta.dtype), *dmixes


def fused_addcmul_rwkv7(
    hidden_states: Tensor,
    delta: Tensor,
    xr: Tensor,
    xw: Tensor,
    xk: Tensor,
    xv: Tensor,
    xa: Tensor,
    xg: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """hidden_states + delta * x for each mix x [1, 1, D]; six of them, the last None if `xg` is."""
    mixes = (xr, xw, xk, xv, xa) if xg is None else (xr, xw, xk, xv, xa, xg)
    outputs = _AddScaledDelta.apply(hidden_states, delta, *mixes)
    return (*outputs, None) if xg is None else outputs


def fused_k_rwkv7(
    k: Tensor,
    a: Tensor,
    ka: Tensor,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Keys k * (1 + (a - 1) * ka), for `k` and `a` [B, T, D] and `ka` [D].

    Tokens do not mix, so that the boundaries `cu_seqlens` [N + 1] do not matter.
    """
    keys = k.float()
    return keys.addcmul(keys * (a.float() - 1), ka.float()).to(k.dtype)


def gate_output_correction(
    o: Tensor, r: Tensor, k: Tensor, r_k: Tensor, v: Tensor, g: Tensor
) -> Tensor:
    """(o + (r . (k * r_k)) v) * g: the bonus of a token for itself, then the output gate.

    Args:
        o: [B, T, H * D].
        r: [B, T, H, D].
        k: [B, T, H, D].
        r_k: [H, D].
        v: [B, T, H, D].
        g: [B, T, H * D].
    """
    products = r.float() * k.float() * r_k.float()
    bonus = products.sum(-1, keepdim=True) * v.float()
    return ((o.float() + bonus.flatten(-2)) * g.float()).to(o.dtype)


class MixedChannels(NamedTuple):
    """What `channel_mixing_rwkv7` returns."""

    outputs: Tensor
    """[B, T, D]."""
    last_row: Tensor
    """[T, D], the last row of the inputs, which fla calls their state."""


def channel_mixing_rwkv7(
    x: Tensor,
    x_prev: Tensor,
    x_k: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    inplace: bool = True,
) -> MixedChannels:
    """relu((x_t + (x_{t-1} - x_t) * x_k) @ key_weight)^2 @ value_weight: the feed-forward of RWKV7.

    Args:
        x: [B, T, D].
        x_prev: [B, D] or [B, 1, D] tokens before the first ones.
        x_k: [1, 1, D] how much of the token before is mixed in.
        key_weight: [D, F].
        value_weight: [F, D].
        inplace: fla then writes gradients over `x` and `x_prev`; here nothing is written over.
    """
    whole = x.float()
    shifted = torch.cat((x_prev.float().reshape(-1, 1, x.shape[-1]), whole[:, :-1]), 1)
    mixed = torch.addcmul(whole, shifted - whole, x_k.float()).to(x.dtype)
    keys = mixed @ key_weight
    hidden = torch.relu(keys.float()).square().to(keys.dtype)
    return MixedChannels(hidden @ value_weight, x[-1])
