"""The gated Oja rule under fla's names: a delta rule that corrects keys, with decays of the values.

    S_t = S_{t-1} diag(exp(g_t)) + beta_t (k_t - S_{t-1} diag(exp(g_t)) v_t) v_t^T
    o_t = scale S_t^T q_t

With S transposed it is a delta rule whose keys are the values and whose values are the keys. What
it writes for key k_t, u_t = beta_t (k_t - S v_t), is read from that delta rule, by a step before
each write; outputs are linear attention to the u with a decay of the values (`value_decay`).

Shape letters: B batch, T tokens, N sequences, H heads of queries and keys, G heads of values (a
multiple of H), K key width, V value width.
"""

import torch
from torch import Tensor

from flame_accel.kernels.modules.norm import l2norm
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.generalized_delta_rule import generalized_delta_rule
from flame_accel.kernels.recurrence.sequences import OutputsAndOptionalStates
from flame_accel.kernels.recurrence.value_decay import linear_attention_with_value_decay


@without_autocast
def chunk_gated_oja_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_q_l2norm: bool = False,
    use_k_l2norm: bool = False,
    cu_seqlens: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """Outputs [B, T, G, V] in the dtype of `v`, and final states [N, G, K, V] in fp32, or None.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, G, V].
        gv: log decays [B, T, G, V]; none if None.
        beta: strengths [B, T, G]; 1 if None.
        scale: factor of the outputs; 1 / sqrt(K) if None.
        initial_state: like the final states; zeros if None.
        output_final_state: whether to return the final states.
        use_q_l2norm: whether to divide queries by their l2 norm.
        use_k_l2norm: whether to divide keys by their l2 norm.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    q = l2norm(q, output_dtype=torch.float32) if use_q_l2norm else q.float()
    k = l2norm(k, output_dtype=torch.float32) if use_k_l2norm else k.float()
    shared = v.shape[2] // k.shape[2]
    q, k = (x.repeat_interleave(shared, 2) if shared > 1 else x for x in (q, k))
    values = v.float()
    strengths = torch.ones_like(values[..., :1]) if beta is None else beta.float().unsqueeze(-1)
    g = torch.zeros_like(values) if gv is None else gv.float()
    # two steps for each token: one decays the state and reads it with v, the next one writes
    nothing = torch.zeros_like(values)
    read, _ = generalized_delta_rule(
        _interleave(values, nothing),
        _interleave(nothing, values),
        _interleave(torch.zeros_like(k), k * strengths),
        _interleave(nothing, values * strengths),
        None,
        _interleave(g, nothing),
        scale=1.0,
        initial_state=initial_state,
        state_v_first=True,
        cu_seqlens=None if cu_seqlens is None else cu_seqlens * 2,
    )
    written = strengths * (k - read[:, ::2])
    o, state = linear_attention_with_value_decay(
        q, written, values, g,
        scale=k.shape[-1] ** -0.5 if scale is None else scale,
        initial_state=initial_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return o.to(v.dtype), state if output_final_state else None


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    """[B, T, ...] twice -> [B, 2 T, ...], token by token."""
    return torch.stack((first, second), 2).flatten(1, 2)
