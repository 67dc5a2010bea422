"""The delta rule with decays per head, under fla's names; arithmetic in `generalized_delta_rule`.

    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - exp(g_t) S_{t-1}^T k_t)^T,    o_t = scale * S_t^T q_t

(DeltaNet, arXiv 2406.06484; Gated DeltaNet, arXiv 2412.06464; Gated DeltaProduct, arXiv 2502.10297;
Comba, arXiv 2506.02475). Decays per channel are in `kda`, erase keys of their own in `dplr`.

Outputs are [B, T, HV, V], final states [N, HV, K, V] in fp32.

Shape letters: B batch, T tokens, N sequences, H heads of keys, HV heads of values (a multiple of
H), K key width, V value width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.generalized_delta_rule import generalized_delta_rule
from flame_accel.kernels.recurrence.sequences import OutputsAndFinalStates, OutputsAndOptionalStates


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
) -> OutputsAndOptionalStates:
    """S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T, strengths `beta` [B, T, H], 1 if None."""
    o, state = run_delta_rule(
        q, k, v, beta,
        scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
        normalize_qk=use_qk_l2norm_in_kernel,
    )  # fmt: skip
    return o, state if output_final_state else None


@without_autocast
def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    gk: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """Decays exp(g_t) before keys read the state: `g` [B, T, HV], or `gk` [B, T, HV, K] as well.

    `v`, `g` and `beta` may have more heads (HV) than `q` and `k` (H), a multiple. With
    `use_beta_sigmoid_in_kernel`, `beta` are logits; `allow_neg_eigval` doubles their sigmoid. With
    `use_gate_in_kernel`, the log decay is -exp(A_log) softplus(g + dt_bias), parameters [HV].
    """
    if use_gate_in_kernel and g is not None and A_log is not None:
        g = fused_gdn_gate(g, A_log, dt_bias)
    if use_beta_sigmoid_in_kernel and beta is not None:
        beta = beta_from_logits(beta, allow_neg_eigval)
    o, state = run_delta_rule(
        q, k, v, beta, add_decays_of_heads_and_channels(g, gk),
        scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
        normalize_qk=use_qk_l2norm_in_kernel, state_v_first=state_v_first,
    )  # fmt: skip
    return o, state if output_final_state else None


def fused_gdn_gate(
    g: Tensor,
    A_log: Tensor,
    dt_bias: Tensor | None = None,
    output_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Log decays -exp(A_log) softplus(g + dt_bias), shaped like `g` [.., H]; H parameters."""
    rates = g.float() if dt_bias is None else g.float() + dt_bias.float()
    return (-A_log.flatten().float().exp() * F.softplus(rates)).to(output_dtype)


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
) -> OutputsAndOptionalStates:
    """Several delta rule steps per token: k, v, beta are [B, T * num_householder, H, ...].

    Of the `num_householder` steps of a token the first decays the state, and the last reads it.
    """
    other_steps = num_householder - 1
    q = F.pad(q.unsqueeze(2), (0, 0, 0, 0, other_steps, 0)).flatten(1, 2)
    g = None if g is None else F.pad(g.unsqueeze(2), (0, 0, 0, other_steps)).flatten(1, 2)
    o, state = chunk_gated_delta_rule(
        q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        cu_seqlens=None if cu_seqlens is None else cu_seqlens * num_householder,
    )  # fmt: skip
    return o[:, other_steps::num_householder].contiguous(), state


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
) -> OutputsAndOptionalStates:
    """S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - S_{t-1}^T p_t)^T, erase keys `p` [B, T, H, K].

    `p` reads the state before its decay, as in fla's kernels and its `naive_chunk_comba`; fla's
    `naive_recurrent_comba` reads it after the decay.
    """
    o, state = run_delta_rule(
        q, k, v, beta, g.unsqueeze(-1),
        scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
        normalize_qk=use_qk_l2norm_in_kernel, erase_keys=p, erase_before_decay=True,
    )  # fmt: skip
    return o, state if output_final_state else None


def add_decays_of_heads_and_channels(g: Tensor | None, gk: Tensor | None) -> Tensor | None:
    """Log decays [B, T, H, 1 or K] from `g` [B, T, H] and `gk` [B, T, H, K]; None if both are."""
    if g is None or gk is None:
        return gk if g is None else g.unsqueeze(-1)
    return g.float().unsqueeze(-1) + gk.float()


def beta_from_logits(beta: Tensor, allow_neg_eigval: bool) -> Tensor:
    """Strengths in (0, 1); with `allow_neg_eigval` in (0, 2), where I - beta k k^T can reflect."""
    return beta.float().sigmoid() * (2.0 if allow_neg_eigval else 1.0)


@without_autocast
def run_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor | None = None,
    *,
    scale: float | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    normalize_qk: bool = False,
    state_v_first: bool = False,
    erase_keys: Tensor | None = None,
    erase_before_decay: bool = False,
) -> OutputsAndFinalStates:
    """`generalized_delta_rule` with one strength per head for what is erased and written.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV a multiple of H.
        beta: strengths [B, T, HV]; 1 if None.
        g: log decays [B, T, HV, 1 or K], or None.
        scale: factor of the outputs; 1 / sqrt(K) if None.
        initial_state: [N, HV, K, V], or [N, HV, V, K] if `state_v_first`; zeros if None.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        normalize_qk: whether to divide queries and keys by their l2 norms.
        state_v_first: the layout of the states.
        erase_keys: [B, T, H, K]; `k` if None.
        erase_before_decay: whether erase keys read the state before the decay of their token.

    Returns:
        Outputs [B, T, HV, V] in the dtype of `v`, and final states in fp32.
    """
    erase_keys = k if erase_keys is None else erase_keys
    if normalize_qk:
        same = erase_keys is k
        q, k = l2norm(q, output_dtype=torch.float32), l2norm(k, output_dtype=torch.float32)
        erase_keys = k if same else l2norm(erase_keys, output_dtype=torch.float32)
    repeats = v.shape[2] // k.shape[2]
    if repeats > 1:
        q, k, erase_keys = (x.repeat_interleave(repeats, 2) for x in (q, k, erase_keys))
    dtype = v.dtype
    if beta is not None:
        if beta.dim() == v.dim():
            raise UserError(
                "the delta rule with strengths per value channel has no PyTorch implementation",
                remedy="use strengths per head, or a Triton device",
            )
        strength = beta.float().unsqueeze(-1)
        v, erase_keys = v.float() * strength, erase_keys.float() * strength
    o, state = generalized_delta_rule(
        q, k, v, erase_keys, None, g,
        scale=k.shape[-1] ** -0.5 if scale is None else scale,
        erase_before_decay=erase_before_decay, initial_state=initial_state,
        state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return o.to(dtype), state
