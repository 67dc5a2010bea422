"""RWKV6's recurrence under fla's names: a token is read before it is stored, with a bonus.

    o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T r_t,    S_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T

(Peng et al., Eagle and Finch, arXiv 2404.05892). The state that a token reads is what GLA would
have after it, if keys, values and decays came one token later. So GLA computes it from delayed
ones; the bonus is a product within each token.

Shape letters: B batch, T tokens, N sequences, H heads, K key and V value channels.
"""

from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.gla import fused_recurrent_gla


def chunk_rwkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """As `fused_recurrent_rwkv6`."""
    return fused_recurrent_rwkv6(
        r, k, v, w, u, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens
    )


@without_autocast
def fused_recurrent_rwkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Outputs [B, T, H, V] in the dtype of `v`, and final states [N, H, K, V] in fp32, or None.

    Args:
        r: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        w: [B, T, H, K] log decays.
        u: [H, K] bonus.
        scale: factor of the outputs; 1 / sqrt(K) if None.
        initial_state: like the final states; zeros if None.
        output_final_state: whether to return the final states.
        reverse: runs from the last token to the first.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    factor = k.shape[-1] ** -0.5 if scale is None else scale
    r, k, w, u = (x.float() for x in (r, k, w, u))
    values = v.float()
    late = [_delay(x, cu_seqlens, reverse) for x in (k, values, w)]
    o, state = fused_recurrent_gla(
        r, late[0], late[1], late[2], None, factor, initial_state, output_final_state, reverse,
        False, cu_seqlens,
    )  # fmt: skip
    o = o + (r * u * k).sum(-1, keepdim=True) * factor * values
    if state is not None:
        k, values, w = (_ends(x, cu_seqlens, reverse) for x in (k, values, w))
        state = state * w.exp().unsqueeze(-1) + k.unsqueeze(-1) * values.unsqueeze(-2)
    return o.to(v.dtype), state


def _delay(x: Tensor, cu_seqlens: Tensor | None, reverse: bool) -> Tensor:
    """What came one token earlier in the same sequence, zero at its first token."""
    if cu_seqlens is None:
        first = torch.tensor([x.shape[1] - 1 if reverse else 0], device=x.device)
    else:
        first = cu_seqlens[1:] - 1 if reverse else cu_seqlens[:-1]
    return x.roll(-1 if reverse else 1, 1).index_fill(1, first.long(), 0)


def _ends(x: Tensor, cu_seqlens: Tensor | None, reverse: bool) -> Tensor:
    """The last token of each sequence, [N, ...]."""
    if cu_seqlens is None:
        return x[:, 0 if reverse else -1]
    return x[0, cu_seqlens[:-1] if reverse else cu_seqlens[1:] - 1]
