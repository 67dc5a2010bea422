"""The generalized delta rule under fla's names and signatures; the arithmetic is in `delta`.

What is erased has keys of its own, and is read before the decay. RWKV7 calls these functions
through `rwkv7`. Arguments that choose among fla's kernels have no effect.
"""

from typing import Any

from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.delta import delta_attention
from flame_accel.kernels.recurrence.delta_rule import States, check_no_context_parallelism


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
    cu_seqlens_cpu: Tensor | None = None,
    safe_gate: bool = False,
    chunk_size: int | None = None,
    disable_recompute: bool = False,
    cp_context: Any = None,
    lower_bound: float | None = None,
    **options: Any,
) -> States:
    """S_t = diag(exp(gk_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T (2503.14456).

    All are [B, T, H, K] but `v` [B, T, H, V]; the scale is 1 / sqrt(K) if None.
    """
    check_no_context_parallelism(cp_context)
    o, state = delta_attention(
        q, k, v, -a, b, gk,
        scale=k.shape[-1] ** -0.5 if scale is None else scale,
        before_decay=True, initial_state=initial_state, cu_seqlens=cu_seqlens,
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
) -> States:
    """As `chunk_dplr_delta_rule`; `reverse` runs from the last token to the first."""
    if reverse:
        q, k, v, a, b = (x.flip(1) for x in (q, k, v, a, b))
        gk = None if gk is None else gk.flip(1)
        if cu_seqlens is not None:
            cu_seqlens = cu_seqlens[-1] - cu_seqlens.flip(0)
            initial_state = None if initial_state is None else initial_state.flip(0)
    o, state = chunk_dplr_delta_rule(
        q, k, v, a, b, gk, scale, initial_state, output_final_state, cu_seqlens
    )
    if reverse:
        o = o.flip(1)
        state = state if state is None or cu_seqlens is None else state.flip(0)
    return o, state


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
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> States:
    """As `chunk_dplr_delta_rule` without a decay."""
    return chunk_dplr_delta_rule(
        q, k, v, a, b, None, scale, initial_state, output_final_state, cu_seqlens
    )


def fused_recurrent_iplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> States:
    """As `chunk_iplr_delta_rule`."""
    return chunk_iplr_delta_rule(
        q, k, v, a, b, scale, initial_state, output_final_state, cu_seqlens
    )
