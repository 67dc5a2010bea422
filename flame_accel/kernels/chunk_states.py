"""The states between chunks of packed documents, whose number the host knows: fla's kernels.

Both functions launch what fla's functions of the same names launch, and wait for nothing, if the
boundaries were left on the host (`boundaries_on_host`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels.boundaries_on_host import find_known_boundaries


def chunk_fwd_h(
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    h0: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    *,
    cu_seqlens: Tensor,
    chunk_size: int = 64,
    split_size: int | None = None,
    states_in_fp32: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Launches fla's `chunk_fwd_kernel_h`, with the number of states counted on the host.

    Returns:
        The state before each split [B, splits, H, K, V], and the final ones if asked for.
    """
    from fla.ops.common import chunk_h

    split_size = chunk_size if split_size is None else split_size
    h = _empty_states(k, v, k.shape[2], cu_seqlens, split_size, state_v_first, states_in_fp32)
    final = None
    if output_final_state:
        final = h.new_empty(len(cu_seqlens) - 1, *h.shape[2:], dtype=torch.float32)
    chunk_h.chunk_fwd_kernel_h[_grid_over_states(k, v, cu_seqlens)](
        k=k, v=v, h=h, h0=h0, ht=final,
        **_arguments_of_both(k, v, cu_seqlens, chunk_size, split_size, state_v_first),
        **_decays_and_flags(g=g, g_gamma=g_gamma, gk=gk, gv=gv),
    )  # fmt: skip
    return h, final


def chunk_bwd_dh(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    h0: Tensor | None,
    dht: Tensor | None,
    scale: float,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    state_v_first: bool = False,
    *,
    cu_seqlens: Tensor,
    chunk_size: int = 64,
    split_size: int | None = None,
    states_in_fp32: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Launches fla's `chunk_bwd_kernel_dh`, as `chunk_fwd_h` does the forward one.

    Returns:
        Gradients of the states [B, splits, query heads, K, V], and of the initial ones if given.
    """
    from fla.ops.common import chunk_h

    split_size = chunk_size if split_size is None else split_size
    heads, query_heads = k.shape[2], q.shape[2]
    dh = _empty_states(k, v, query_heads, cu_seqlens, split_size, state_v_first, states_in_fp32)
    dh0 = None if h0 is None else torch.empty_like(h0, dtype=torch.float32)
    chunk_h.chunk_bwd_kernel_dh[_grid_over_states(k, v, cu_seqlens)](
        q=q, do=do, dh=dh, dht=dht, dh0=dh0, scale=scale, HQ=query_heads, NG=query_heads // heads,
        **_arguments_of_both(k, v, cu_seqlens, chunk_size, split_size, state_v_first),
        **_decays_and_flags(g=g, g_gamma=g_gamma, gk=gk, gv=gv),
    )  # fmt: skip
    return dh, dh0


def _empty_states(
    k: Tensor,
    v: Tensor,
    heads: int,
    cu_seqlens: Tensor,
    split_size: int,
    state_v_first: bool,
    in_fp32: bool,
) -> Tensor:
    known = find_known_boundaries(cu_seqlens)
    assert known is not None
    state = (v.shape[3], k.shape[3]) if state_v_first else (k.shape[3], v.shape[3])
    dtype = torch.float32 if in_fp32 else k.dtype
    return k.new_empty(k.shape[0], known.count_chunks(split_size), heads, *state, dtype=dtype)


def _grid_over_states(k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Callable[..., tuple[int]]:
    """A program for each block of each document's and head's state."""
    states, channels, values = (len(cu_seqlens) - 1) * k.shape[2], k.shape[3], v.shape[3]
    return lambda meta: (-(-channels // meta["BK"]) * -(-values // meta["BV"]) * states,)


def _arguments_of_both(
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    chunk_size: int,
    split_size: int,
    state_v_first: bool,
) -> dict[str, Any]:
    from fla.ops.utils import prepare_chunk_offsets

    _, tokens, heads, channels = k.shape
    return {
        "cu_seqlens": cu_seqlens, "split_offsets": prepare_chunk_offsets(cu_seqlens, split_size),
        "T": tokens, "H": heads, "K": channels, "V": v.shape[3], "BT": chunk_size,
        "BS": split_size, "STATE_V_FIRST": state_v_first,
    }  # fmt: skip


def _decays_and_flags(**decays: Tensor | None) -> dict[str, Any]:
    return decays | {f"USE_{name.upper()}": decay is not None for name, decay in decays.items()}
