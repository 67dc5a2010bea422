"""RWKV6's recurrence under fla's names: a token is read before it is stored, with a bonus.

    o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T r_t,    S_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T

(Peng et al., Eagle and Finch, arXiv 2404.05892). The state that a token reads, S_{t-1}, is what GLA
has after token t if keys, values and decays are shifted by one token. So GLA computes the outputs
from shifted inputs; the bonus is a product within each token.

Shape letters: B batch, T tokens, N sequences, H heads, K key width, V value width.
"""

from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.gla import fused_recurrent_gla
from flame_accel.kernels.recurrence.sequences import (
    OutputsAndOptionalStates,
    first_tokens,
    last_tokens,
    value_of_next_token,
    value_of_previous_token,
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
) -> OutputsAndOptionalStates:
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
        reverse: run from the last token to the first.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    factor = k.shape[-1] ** -0.5 if scale is None else scale
    shift = value_of_next_token if reverse else value_of_previous_token
    r, k, w, u = (x.float() for x in (r, k, w, u))
    values = v.float()
    shifted_k, shifted_v, shifted_w = (shift(x, cu_seqlens) for x in (k, values, w))
    o, state = fused_recurrent_gla(
        r, shifted_k, shifted_v, shifted_w, None, factor, initial_state, output_final_state,
        reverse, False, cu_seqlens,
    )  # fmt: skip
    o = o + (r * u * k).sum(-1, keepdim=True) * factor * values
    if state is not None:
        # the shift dropped the last token
        ends = first_tokens if reverse else last_tokens
        k, values, w = (ends(x, cu_seqlens) for x in (k, values, w))
        state = state * w.exp().unsqueeze(-1) + k.unsqueeze(-1) * values.unsqueeze(-2)
    return o.to(v.dtype), state
