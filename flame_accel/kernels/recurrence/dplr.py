"""DPLR and IPLR delta rules under fla's names; arithmetic in `generalized_delta_rule`.

    S_t = diag(exp(gk_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T,    o_t = scale * S_t^T q_t

(RWKV-7, arXiv 2503.14456): a transition that is diagonal plus low rank, or identity plus low rank.
What is erased has keys a and b of its own, and is read before the decay. RWKV7 calls these
functions through `rwkv7`.

Shape letters: B batch, T tokens, H heads, K key width, V value width.
"""

from functools import partial

from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.generalized_delta_rule import generalized_delta_rule
from flame_accel.kernels.recurrence.sequences import (
    OutputsAndOptionalStates,
    run_operator_from_last_token,
)


@without_autocast
def chunk_dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    gk: Tensor | None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """The formula above; `gk` are log decays.

    Inputs are [B, T, H, K], but `v` is [B, T, H, V]; the scale is 1 / sqrt(K) if None.
    """
    o, state = generalized_delta_rule(
        q, k, v, -a, b, gk,
        scale=k.shape[-1] ** -0.5 if scale is None else scale,
        erase_before_decay=True, initial_state=initial_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return o, state if output_final_state else None


def fused_recurrent_dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    gk: Tensor | None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """As `chunk_dplr_delta_rule`; `reverse` runs from the last token to the first."""
    operator = partial(chunk_dplr_delta_rule, scale=scale, output_final_state=output_final_state)
    inputs = (q, k, v, a, b, gk)
    if reverse:
        return run_operator_from_last_token(operator, inputs, initial_state, cu_seqlens)
    return operator(*inputs, initial_state=initial_state, cu_seqlens=cu_seqlens)


def chunk_iplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """As `chunk_dplr_delta_rule` without a decay."""
    return chunk_dplr_delta_rule(
        q, k, v, a, b, None, scale, initial_state, output_final_state, cu_seqlens
    )
