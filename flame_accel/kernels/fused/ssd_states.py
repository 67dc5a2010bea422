"""States between the chunks of linear attention with one decay per head, and their gradients.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T

(2405.21060). Heads of a group share their keys and queries, which are read as they are: fla's
kernels for these states need a copy of them for each head. Shapes: B batch, T tokens, G groups, H
heads, K width of keys and queries, V of values, N sequences.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from fla.ops import utils
from torch import Tensor

CHUNK = 64
"""Tokens of a chunk, as fla's operators cut them."""
BLOCK = 64
"""Rows and columns of the part of a state that a program carries."""


@triton.jit(do_not_specialize=["T"])
def _states_kernel(
    x,
    y,
    g,
    states,
    boundaries,
    first_chunks,
    T,
    G: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHUNK: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    part = tl.program_id(1)
    sequence = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    if PACKED:
        begin = tl.load(boundaries + sequence).to(tl.int64)
        length = (tl.load(boundaries + sequence + 1) - begin).to(tl.int32)
        first_chunk = tl.load(first_chunks + sequence).to(tl.int64)
    else:
        begin = sequence * T
        length = T
        first_chunk = sequence * tl.cdiv(T, CHUNK)
    channels = (part // (V // BV)) * BK + tl.arange(0, BK)
    values = (part % (V // BV)) * BV + tl.arange(0, BV)
    inside_chunk = tl.arange(0, CHUNK)
    x += begin * (G * K) + (head // (H // G)) * K
    y += begin * (H * V) + head * V
    g += begin * H + head
    states += (first_chunk * H + head) * (K * V)
    num_chunks = tl.cdiv(length, CHUNK)
    b_state = tl.zeros((BV, BK), dtype=tl.float32)
    for step in range(num_chunks):
        chunk = num_chunks - 1 - step if BACKWARD else step
        rows = chunk * CHUNK + inside_chunk
        present = rows < length
        # an offset of its own: all states of a batch are more than 2^31 elements
        place = states + tl.cast(chunk, tl.int64) * (H * K * V)
        stored = b_state.to(states.dtype.element_ty)
        tl.store(place + values[:, None] * K + channels[None, :], stored)
        places = tl.cast(rows, tl.int64)
        b_x = tl.load(
            x + places[:, None] * (G * K) + channels[None, :], mask=present[:, None], other=0.0
        )
        b_y = tl.load(
            y + places[:, None] * (H * V) + values[None, :], mask=present[:, None], other=0.0
        )
        b_g = tl.load(g + places * H, mask=present, other=0.0)
        last = tl.minimum(chunk * CHUNK + CHUNK, length) - 1
        b_last = tl.load(g + tl.cast(last, tl.int64) * H)
        b_factor = tl.exp2(b_g if BACKWARD else b_last - b_g)
        b_y = (b_y * b_factor[:, None]).to(b_y.dtype)
        b_state = b_state * tl.exp2(b_last) + tl.dot(tl.trans(b_y), b_x)


# decorators hide the types of its functions
_UTILS: Any = utils
# launches have options that are no parameters
_STATES: Any = _states_kernel


class Sequences(NamedTuple):
    """How the tokens of a batch are cut."""

    boundaries: Tensor | None
    """Of packed sequences [N + 1]; None where each row is one sequence."""
    chunk_indices: Tensor | None
    """Sequence and number of each chunk [chunks, 2], where there are boundaries."""


def index_chunks_of_sequences(boundaries: Tensor | None) -> Sequences:
    """Chunks of packed sequences [N + 1], or of rows; looked up where the host knows them."""
    if boundaries is None:
        return Sequences(None, None)
    return Sequences(boundaries, _UTILS.prepare_chunk_indices(boundaries, CHUNK))


def compute_states_before_chunks(k: Tensor, v: Tensor, g: Tensor, sequences: Sequences) -> Tensor:
    """The state before each chunk [B, chunks, H, V, K], summed in fp32, in the dtype of the keys.

    Args:
        k: Keys [B, T, G, K], K a multiple of 16.
        v: Values [B, T, H, V], V a multiple of 16.
        g: Sums of log decays within chunks, to the base 2 [B, T, H], fp32.
        sequences: Where sequences and their chunks begin.
    """
    return _launch_over_chunks(k, v, g, sequences, backward=False)


def compute_state_gradients_after_chunks(
    q: Tensor, do: Tensor, g: Tensor, sequences: Sequences
) -> Tensor:
    """The gradient of the state after each chunk [B, chunks, H, V, K], in the dtype of queries.

    Kernels round both states to that dtype before their products; the gradient of the decays alone
    reads them as they are.

    Args:
        q: Queries [B, T, G, K], with any scale.
        do: Gradients of outputs [B, T, H, V].
        g: As for `compute_states_before_chunks`.
        sequences: Where sequences and their chunks begin.
    """
    return _launch_over_chunks(q, do, g, sequences, backward=True)


def _launch_over_chunks(
    x: Tensor,
    y: Tensor,
    g: Tensor,
    sequences: Sequences,
    *,
    backward: bool,
) -> Tensor:
    batch, tokens, groups, channels = x.shape
    heads, values = y.shape[2:]
    boundaries, indices = sequences
    if boundaries is None or indices is None:
        first_chunks, num_chunks, num_sequences = None, -(-tokens // CHUNK), batch
    else:
        first_chunks = _UTILS.prepare_chunk_offsets(boundaries, CHUNK)
        num_chunks, num_sequences = len(indices), len(boundaries) - 1
    shape = (batch, num_chunks, heads, values, channels)
    states = torch.empty(shape, dtype=x.dtype, device=x.device)
    block_k, block_v = _power_of_two_block_dividing(channels), _power_of_two_block_dividing(values)
    grid = (num_sequences * heads, (channels // block_k) * (values // block_v))
    _STATES[grid](
        x, y, g, states, boundaries, first_chunks, tokens, groups, heads, channels, values,
        CHUNK, block_k, block_v, PACKED=boundaries is not None, BACKWARD=backward,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return states


def _power_of_two_block_dividing(width: int) -> int:
    """The largest power of two up to `BLOCK` that divides a width."""
    return min(BLOCK, width & -width)
