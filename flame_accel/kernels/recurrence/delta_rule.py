"""The delta rule with decays per head, under fla's names and signatures; the arithmetic is `delta`.

DeltaNet, Gated DeltaNet, Gated DeltaProduct and Comba call these functions. Decays per channel are
in `kda`, erased keys of their own in `dplr`. Arguments that choose among fla's kernels have no
effect.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.delta import delta_attention

States = tuple[Tensor, Tensor | None]


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> States:
    """S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T, strengths `beta` [B, T, H], 1 if None."""
    o, state = correct(
        q, k, v, beta,
        scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
        normalize=use_qk_l2norm_in_kernel,
    )  # fmt: skip
    return o, state if output_final_state else None


def fused_recurrent_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> States:
    """As `chunk_delta_rule`."""
    return chunk_delta_rule(
        q, k, v, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens
    )


@without_autocast
def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: Any = None,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    **options: Any,
) -> States:
    """Decay per head: the state decays by exp(g_t), `g` [B, T, HV], before it is corrected.

    `v`, `g` and `beta` may have more heads (HV) than `q` and `k` (H), a multiple. With
    `use_beta_sigmoid_in_kernel`, `beta` are logits; `allow_neg_eigval` doubles their sigmoid. With
    `use_gate_in_kernel`, the log decay is -exp(A_log) softplus(g + dt_bias), parameters [HV].
    """
    check_no_context_parallelism(cp_context)
    if use_gate_in_kernel and g is not None and A_log is not None:
        rates = g.float() if dt_bias is None else g.float() + dt_bias.float()
        g = -A_log.float().exp() * F.softplus(rates)
    if use_beta_sigmoid_in_kernel and beta is not None:
        beta = sigmoid_beta(beta, allow_neg_eigval)
    o, state = correct(
        q, k, v, beta, None if g is None else g.unsqueeze(-1),
        scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
        normalize=use_qk_l2norm_in_kernel, state_v_first=state_v_first,
    )  # fmt: skip
    return o, state if output_final_state else None


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **options: Any,
) -> States:
    """As `chunk_gated_delta_rule`, whose further arguments are `options`."""
    if gk is not None or gv is not None:
        raise UserError(
            "fused_recurrent_gated_delta_rule with decays per channel (gk, gv) has no PyTorch "
            "implementation",
            remedy="use fused_recurrent_kda for decays of the keys, or a Triton device",
        )
    return chunk_gated_delta_rule(
        q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        **options,
    )  # fmt: skip


def chunk_gated_delta_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    num_householder: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: Any = None,
) -> States:
    """Several corrections per token (2502.10297): k, v, beta are [B, T * num_householder, H, ...].

    A token is `num_householder` steps, of which the first decays and the last is asked.
    """
    before = num_householder - 1
    q = F.pad(q.unsqueeze(2), (0, 0, 0, 0, before, 0)).flatten(1, 2)
    g = None if g is None else F.pad(g.unsqueeze(2), (0, 0, 0, before)).flatten(1, 2)
    o, state = chunk_gated_delta_rule(
        q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        cu_seqlens=None if cu_seqlens is None else cu_seqlens * num_householder,
        cp_context=cp_context,
    )  # fmt: skip
    return o[:, before::num_householder].contiguous(), state


def chunk_comba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor | None,
    g: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> States:
    """S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - S_{t-1}^T p_t)^T (2506.02475).

    What `p` [B, T, H, K] reads has not decayed yet, as in fla's kernels and `naive_chunk_comba`;
    `naive_recurrent_comba` reads it after the decay.
    """
    o, state = correct(
        q, k, v, beta, g.unsqueeze(-1),
        scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
        normalize=use_qk_l2norm_in_kernel, erase=p, before_decay=True,
    )  # fmt: skip
    return o, state if output_final_state else None


def fused_recurrent_comba(
    q: Tensor, k: Tensor, p: Tensor | None, v: Tensor, g: Tensor, *rest: Any, **options: Any
) -> States:
    """As `chunk_comba`, with another order of arguments."""
    return chunk_comba(q, k, v, p, g, *rest, **options)


def sigmoid_beta(beta: Tensor, allow_neg_eigval: bool) -> Tensor:
    """Strengths in (0, 1), or in (0, 2): the correction then can turn a direction around."""
    return beta.float().sigmoid() * (2.0 if allow_neg_eigval else 1.0)


def check_no_context_parallelism(cp_context: Any) -> None:
    """Raises if sequences are split over devices: the PyTorch implementations see whole ones."""
    if cp_context is not None:
        raise UserError(
            "the delta rule with context parallelism (cp_context) has no PyTorch implementation",
            remedy="train without context parallelism, or on machines with Triton devices",
        )


@without_autocast
def correct(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor | None = None,
    *,
    scale: float | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    normalize: bool = False,
    state_v_first: bool = False,
    erase: Tensor | None = None,
    before_decay: bool = False,
) -> tuple[Tensor, Tensor]:
    """`delta.delta_attention` with one strength per head for what is erased and written.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV a multiple of H.
        beta: strengths [B, T, HV]; 1 if None.
        g: as there, [B, T, HV, 1 or K].
        scale: 1 / sqrt(K) if None.
        initial_state: as there.
        cu_seqlens: as there.
        normalize: divide queries and keys by their lengths.
        state_v_first: as there.
        erase: keys of what is erased, [B, T, H, K]; `k` if None.
        before_decay: as there.
    """
    erase = k if erase is None else erase
    if normalize:
        same = erase is k
        q, k = l2norm(q, output_dtype=torch.float32), l2norm(k, output_dtype=torch.float32)
        erase = k if same else l2norm(erase, output_dtype=torch.float32)
    repeats = v.shape[2] // k.shape[2]
    if repeats > 1:
        q, k, erase = (x.repeat_interleave(repeats, 2) for x in (q, k, erase))
    dtype = v.dtype
    if beta is not None:
        if beta.dim() == v.dim():
            raise UserError(
                "the delta rule with strengths per value channel has no PyTorch implementation",
                remedy="use strengths per head, or a Triton device",
            )
        strength = beta.float().unsqueeze(-1)
        v, erase = v.float() * strength, erase.float() * strength
    o, state = delta_attention(
        q, k, v, erase, None, g,
        scale=k.shape[-1] ** -0.5 if scale is None else scale,
        before_decay=before_decay, initial_state=initial_state,
        state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return o.to(dtype), state
