"""Log-linear attention: linear attention with decay and one weight per level of a Fenwick tree.

Token i reads token j with the weight L of level l(i, j), the number of bits of i XOR j, which is 0
for i = j (Guo et al., Log-Linear Attention, arXiv 2506.04761):

    o_i = scale sum_{j <= i} L_i,l(i,j) exp(g_{j+1} + ... + g_i) (q_i . k_j) v_j

Levels 0 to 6 lie within a chunk of 64 tokens. Above, level 7 + b pairs blocks of 2^b chunks: all
tokens of the right block of a pair read the one state of the left block, and both states are merged
into that of the next level. There are log T levels, and no loop over chunks.

Shape letters: B batch, T tokens, N sequences, R chunks of a sequence, H heads of values, G heads of
queries and keys, C tokens of a chunk, K key width, V value width, L levels.
"""

from functools import lru_cache, partial, wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fla.layers.log_linear_mamba2 import LogLinearMamba2
from fla.layers.utils import get_layer_cache, update_layer_cache
from fla.models.cache_utils import Cache
from fla.ops.log_linear_attn import chunk as fla_chunk
from fla.ops.log_linear_attn.chunk import LogLinearAttentionState
from torch import Tensor

from flame_accel.kernels.modules.padded_rows import (
    LayerOutput,
    forward_rows_without_padding,
    has_padding,
    map_corresponding_tensors,
    pad_and_concatenate_rows,
)
from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import (
    build_chunk_layout,
    from_padded_chunk_batch,
    to_padded_fp32_chunk_batch,
)
from flame_accel.kernels.recurrence.decay_factors import compute_pairwise_and_boundary_decays
from flame_accel.kernels.recurrence.sequences import split_sequences

_triton_chunk_log_linear_attn: Any = fla_chunk.chunk_log_linear_attn

CHUNK_SIZE = 64
"""Tokens of a chunk, as in fla: states hold the tokens of a chunk that is not full yet."""
INTRA_CHUNK_LEVELS = 7
"""Levels within a chunk."""


@without_autocast
def chunk_log_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    level_scales: Tensor,
    initial_state: LogLinearAttentionState | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    scale: float | None = 1.0,
) -> tuple[Tensor, LogLinearAttentionState | None]:
    """Outputs [B, T, H, V] in the dtype of `v`, and the final state or None.

    Args:
        q: [B, T, G, K]; each head is shared by H / G consecutive heads of values.
        k: [B, T, G, K].
        v: [B, T, H, V].
        g: log decays [B, T, H].
        level_scales: weights [B, T, H, L]; levels beyond L weigh 0.
        initial_state: of what came before; without `cu_seqlens`, as many tokens in every row.
        output_final_state: whether to return the state.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        scale: factor of the outputs; 1 / sqrt(K) if None.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    inputs = (q, k, v, g, level_scales)
    if cu_seqlens is None:
        o, state = _attend_rows_with_equally_long_past(inputs, initial_state, factor)
        return o, state if output_final_state else None
    sequences = zip(*(split_sequences(x, cu_seqlens) for x in inputs), strict=True)
    results = [
        _attend_rows_with_equally_long_past(
            sequence,
            map_corresponding_tensors(lambda x, i=i: x[i : i + 1], initial_state),
            factor,
        )
        for i, sequence in enumerate(sequences)
    ]
    o = torch.cat([result.outputs for result in results], 1)
    if not output_final_state:
        return o, None
    # levels that a sequence has not reached are zeros
    concatenate = partial(pad_and_concatenate_rows, pad_before=False)
    return o, map_corresponding_tensors(concatenate, *(result.final_state for result in results))


# not with its attributes, which would tell torch.compile to call it instead
@wraps(_triton_chunk_log_linear_attn, updated=())
def run_triton_log_linear_attn_casting_level_scales(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, level_scales: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, LogLinearAttentionState | None]:
    """The Triton kernels of fla, with the weights of the levels cast to the dtype of `q`.

    The kernels multiply queries and scores by the weights, and `tl.dot` the product with `v`. Under
    autocast the weights come from a parameter in fp32, the rest is in bf16, and Triton refuses a
    product of two dtypes.
    """
    return _triton_chunk_log_linear_attn(q, k, v, g, level_scales.to(q.dtype), *args, **options)


def forward_log_linear_mamba2_per_document_or_row(
    layer: LogLinearMamba2,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> LayerOutput:
    """`LogLinearMamba2.forward`, also without CUDA, where fla's refuses to run.

    fla's layer ignores `cu_seqlens`; here documents are kept apart; their states are not cached.
    It counts padding as tokens, whose positions decide the levels; here every row of a batch with
    padding is computed alone.
    """
    if cu_seqlens is None and attention_mask is not None and has_padding(attention_mask):
        return forward_rows_without_padding(
            lambda row, cache: forward_log_linear_mamba2_per_document_or_row(
                layer, row, past_key_values=cache, use_cache=use_cache
            ),
            hidden_states,
            attention_mask,
            past_key_values,
            layer.layer_idx,
        )
    if cu_seqlens is not None:
        documents = [x for x in split_sequences(hidden_states, cu_seqlens) if x.shape[1]]
        o = torch.cat([layer.cuda_kernels_forward(x)[0] for x in documents], 1)
        return o, None, past_key_values
    last_state = get_layer_cache(layer, past_key_values)
    o, conv_state, state = layer.cuda_kernels_forward(hidden_states, last_state, bool(use_cache))
    update_layer_cache(
        layer,
        past_key_values,
        recurrent_state=state,
        conv_state=conv_state,
        offset=hidden_states.shape[1],
    )
    return o, None, past_key_values


class _OutputsAndState(NamedTuple):
    outputs: Tensor
    """[B, T, H, V]"""
    final_state: LogLinearAttentionState


def _attend_rows_with_equally_long_past(
    qkvg_and_level_scales: tuple[Tensor, ...], past: LogLinearAttentionState | None, scale: float
) -> _OutputsAndState:
    """Outputs [B, T, H, V] and the final state of rows with equally many tokens in the past.

    Args:
        qkvg_and_level_scales: q, k, v, g and level_scales.
        past: state of the tokens before, or None.
        scale: factor of the outputs.
    """
    inputs = qkvg_and_level_scales
    if inputs[0].shape[1] == 0:
        return _OutputsAndState(inputs[2], past or _state_before_first_token(inputs))
    offset = 0 if past is None else int(past.offsets[0])
    # tokens of the last chunk, if it is not full, are computed again
    num_repeated, first_chunk = offset % CHUNK_SIZE, offset // CHUNK_SIZE
    if past is not None and num_repeated:
        tail = (past.q_prev, past.k_prev, past.v_prev, past.g_prev, past.level_scales_prev)
        pairs = zip(tail, inputs, strict=True)
        inputs = tuple(torch.cat((x[:, :num_repeated], y), 1) for x, y in pairs)
    q, k, v, g, level_scales = inputs
    batch, tokens, num_heads = g.shape
    shared = num_heads // q.shape[2]
    layout = build_chunk_layout(batch, tokens, None, CHUNK_SIZE)
    # [R, B, H, C, ...]
    q, k, v, levels = (
        to_padded_fp32_chunk_batch(x, layout).unflatten(0, (-1, batch))
        for x in (q.repeat_interleave(shared, 2), k.repeat_interleave(shared, 2), v, level_scales)
    )
    g = to_padded_fp32_chunk_batch(g.unsqueeze(-1), layout).squeeze(-1).unflatten(0, (-1, batch))
    decays = compute_pairwise_and_boundary_decays(g)
    o = ((q @ k.mT) * decays.between_tokens * _intra_chunk_level_weights(levels)) @ v
    o, level_states = _add_inter_chunk_outputs(
        o,
        q * decays.from_start.unsqueeze(-1),
        levels,
        (k * decays.to_end.unsqueeze(-1)).mT @ v,
        F.pad(g.double().sum(-1).cumsum(0), (0, 0) * 2 + (1, 0)),
        None if past is None else past.ht,
        first_chunk,
        tokens // CHUNK_SIZE,
    )
    o = from_padded_chunk_batch((o * scale).flatten(0, 1), layout, inputs[2].dtype)[
        :, num_repeated:
    ]
    rest = tokens % CHUNK_SIZE
    tail = [
        F.pad(x[:, tokens - rest :], (0, 0) * (x.dim() - 2) + (0, CHUNK_SIZE - rest))
        for x in inputs
    ]
    offsets = torch.full(
        (batch,), first_chunk * CHUNK_SIZE + tokens, dtype=torch.int32, device=g.device
    )
    return _OutputsAndState(o, LogLinearAttentionState(level_states, offsets, *tail))


def _state_before_first_token(
    qkvg_and_level_scales: tuple[Tensor, ...],
) -> LogLinearAttentionState:
    _, k, v, *_ = qkvg_and_level_scales
    batch, _, num_heads, value_width = v.shape
    return LogLinearAttentionState(
        v.new_zeros(batch, 1, num_heads, k.shape[-1], value_width, dtype=torch.float32),
        torch.zeros(batch, dtype=torch.int32, device=v.device),
        *(x.new_zeros(batch, CHUNK_SIZE, *x.shape[2:]) for x in qkvg_and_level_scales),
    )


@lru_cache(maxsize=8)
def _query_key_level_one_hot(chunk_size: int, num_levels: int, device: torch.device) -> Tensor:
    """[C, C, L], 1 where token i (first) reads token j at level l, else 0."""
    tokens = torch.arange(chunk_size, device=device)
    differing_bits = tokens[:, None] ^ tokens
    powers = 1 << torch.arange(num_levels, device=device)
    # the number of bits of x is the number of powers of two that are not above x
    level = (differing_bits.unsqueeze(-1) >= powers).sum(-1, keepdim=True)
    return (level == torch.arange(num_levels, device=device)).float()


def _intra_chunk_level_weights(level_weights: Tensor) -> Tensor:
    """Weights [..., C, C] between the tokens of a chunk, from `level_weights` [..., C, L]."""
    intra = level_weights[..., :INTRA_CHUNK_LEVELS]
    one_hot = _query_key_level_one_hot(
        level_weights.shape[-2], intra.shape[-1], level_weights.device
    )
    return torch.einsum("...il,ijl->...ij", intra, one_hot)


class _OutputsAndLevelStates(NamedTuple):
    outputs: Tensor
    """[R, B, H, C, V]"""
    level_states: Tensor
    """States [B, levels, H, K, V] after the full chunks."""


def _add_inter_chunk_outputs(
    intra_chunk_outputs: Tensor,
    q_from_start: Tensor,
    level_weights: Tensor,
    chunk_updates: Tensor,
    cumulative_g_at_chunk_edges: Tensor,
    past_level_states: Tensor | None,
    num_past_chunks: int,
    num_full_chunks: int,
) -> _OutputsAndLevelStates:
    """The outputs plus what tokens read from other chunks, and the final states, one per level.

    Chunks are counted from the first token of the sequence; this call has those after the past.

    Args:
        intra_chunk_outputs: outputs of the intra-chunk levels [R, B, H, C, V].
        q_from_start: queries, decayed from the start of their chunk [R, B, H, C, K].
        level_weights: weights [R, B, H, C, L].
        chunk_updates: what each chunk adds to a state, decayed to its end [R, B, H, K, V].
        cumulative_g_at_chunk_edges: log decays from the start of this call to before each chunk,
            and to the end [R + 1, B, H].
        past_level_states: states of the blocks before this call [B, levels, H, K, V].
        num_past_chunks: number of chunks before this call.
        num_full_chunks: number of full chunks of this call.
    """
    o, blocks, cumulative_g = intra_chunk_outputs, chunk_updates, cumulative_g_at_chunk_edges
    num_chunks, first, last = len(blocks), num_past_chunks, num_past_chunks + num_full_chunks
    final_states = []

    def decay_between_chunk_edges(begin: list[int], end: list[int]) -> Tensor:
        """Decays between chunk boundaries [n, B, H, 1, 1]; none outside of this call."""
        begin, end = ([min(max(c - first, 0), num_chunks) for c in x] for x in (begin, end))
        return (cumulative_g[end] - cumulative_g[begin]).exp()[..., None, None].float()

    # at each level `blocks` are the states of blocks of 2^b chunks, the first one number `begin`
    for b in range(max(1, (first + num_chunks - 1).bit_length(), last.bit_length())):
        begin = first >> b
        if begin % 2 and past_level_states is not None:
            blocks, begin = torch.cat((past_level_states[None, :, b], blocks)), begin - 1
        readers = [c for c in range(first, first + num_chunks) if c >> b & 1]
        if readers and INTRA_CHUNK_LEVELS + b < level_weights.shape[-1]:
            here = torch.tensor([c - first for c in readers], device=o.device)
            left = blocks[[(c >> b) - 1 - begin for c in readers]]
            q = q_from_start[here] * decay_between_chunk_edges(
                [c >> b << b for c in readers], readers
            )
            weights = level_weights[here][..., INTRA_CHUNK_LEVELS + b].unsqueeze(-1)
            o = o.index_add(0, here, (q @ left) * weights)
        if last >> b & 1:
            left = blocks[(last >> b) - 1 - begin]
            final_states.append(left * decay_between_chunk_edges([last >> b << b], [last])[0])
        else:
            final_states.append(torch.zeros_like(blocks[0]))
        blocks = F.pad(blocks, (0, 0) * 4 + (0, len(blocks) % 2))
        rights = [i << b for i in range(begin + 1, begin + 1 + len(blocks), 2)]
        right_decays = decay_between_chunk_edges(rights, [c + (1 << b) for c in rights])
        blocks = blocks[0::2] * right_decays + blocks[1::2]
    return _OutputsAndLevelStates(o, torch.stack(final_states, 1))
