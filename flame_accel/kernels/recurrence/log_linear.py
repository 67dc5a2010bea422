"""Log-linear attention: linear attention with decay whose past is split into ever longer blocks.

Token i reads token j < i with the weight of level l, the number of bits of i XOR j; its own with
that of level 0 (Guo et al., Log-Linear Attention, arXiv 2506.04761):

    o_i = scale sum_{j <= i} L_i,l(i,j) exp(g_{j+1} + ... + g_i) (q_i . k_j) v_j

Levels 0 to 6 lie within a chunk of 64 tokens. Above, level 7 + b pairs blocks of 2^b chunks: all
tokens of the right block of a pair read the one state of the left block, and both states are merged
into that of the next level. There are log T levels, and no loop over chunks.

Shape letters: B batch, T tokens, N sequences, R chunks of a sequence, H heads of values, G heads of
queries and keys, C tokens of a chunk, K key and V value channels, L levels.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from fla.layers.utils import get_layer_cache, update_layer_cache
from fla.ops.log_linear_attn import chunk as theirs
from fla.ops.log_linear_attn.chunk import LogLinearAttentionState as State
from torch import Tensor

from flame_accel.kernels.precision import without_autocast
from flame_accel.kernels.recurrence.chunking import cut, from_chunks, to_chunks
from flame_accel.kernels.recurrence.scalar_decay import scalar_decays

_triton: Any = theirs.chunk_log_linear_attn

CHUNK = 64
"""Tokens of a chunk, as in fla: states hold the tokens of one that is not full."""
INSIDE = 7
"""Levels within a chunk."""


@without_autocast
def chunk_log_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    level_scales: Tensor,
    initial_state: State | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    scale: float | None = 1.0,
) -> tuple[Tensor, State | None]:
    """Outputs [B, T, H, V] in the dtype of `v`, and the final state or None.

    Args:
        q: [B, T, G, K]; each head is shared by H / G consecutive heads of values.
        k: [B, T, G, K].
        v: [B, T, H, V].
        g: log decays [B, T, H].
        level_scales: [B, T, H, L]; levels beyond L weigh 0.
        initial_state: what came before; without `cu_seqlens` all rows are equally far.
        output_final_state: whether to return the state.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
        scale: factor of the outputs; 1 / sqrt(K) if None.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    inputs = (q, k, v, g, level_scales)
    if cu_seqlens is None:
        o, state = _attend(inputs, initial_state, factor)
        return o, state if output_final_state else None
    parts = zip(*(x.split(cu_seqlens.diff().tolist(), 1) for x in inputs), strict=True)
    befores = [_pick(initial_state, i) for i in range(cu_seqlens.numel() - 1)]
    pairs = [_attend(part, before, factor) for part, before in zip(parts, befores, strict=True)]
    state = _join([state for _, state in pairs]) if output_final_state else None
    return torch.cat([o for o, _ in pairs], 1), state


def attend_in_one_dtype(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, level_scales: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, State | None]:
    """The Triton kernels of fla, with the weights of the levels in the dtype of `q`.

    They multiply them with the queries and the scores and hand the product to a matrix
    product with `v`. Under autocast the weights come from a parameter in fp32, the rest is in bf16,
    and Triton refuses the product.
    """
    return _triton(q, k, v, g, level_scales.to(q.dtype), *args, **options)


def forward_log_linear_mamba2(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None, Any]:
    """What `LogLinearMamba2.forward` does, which refuses to run except on CUDA.

    fla's layer ignores `cu_seqlens`; here documents are kept apart, and nothing of them is cached.
    """
    if cu_seqlens is not None:
        documents = hidden_states.split(cu_seqlens.diff().tolist(), 1)
        o = torch.cat([layer.cuda_kernels_forward(x)[0] for x in documents], 1)
        return o, None, past_key_values
    before = get_layer_cache(layer, past_key_values)
    o, conv_state, state = layer.cuda_kernels_forward(
        hidden_states, before, use_cache, attention_mask
    )
    update_layer_cache(
        layer,
        past_key_values,
        recurrent_state=state,
        conv_state=conv_state,
        offset=hidden_states.shape[1],
    )
    return o, None, past_key_values


def _attend(inputs: tuple[Tensor, ...], before: State | None, scale: float) -> tuple[Tensor, State]:
    """Rows that have seen equally many tokens before."""
    offset = 0 if before is None else int(before.offsets[0])
    kept, first = offset % CHUNK, offset // CHUNK
    if before is not None and kept:
        held = (
            before.q_prev, before.k_prev, before.v_prev, before.g_prev, before.level_scales_prev
        )  # fmt: skip
        inputs = tuple(torch.cat((x[:, :kept], y), 1) for x, y in zip(held, inputs, strict=True))
    q, k, v, g, level_scales = inputs
    batch, tokens, num_heads = g.shape
    shared = num_heads // q.shape[2]
    chunks = cut(batch, tokens, None, CHUNK)
    # [R, B, H, C, ...]
    q, k, v, levels = (
        to_chunks(x, chunks).unflatten(0, (-1, batch))
        for x in (q.repeat_interleave(shared, 2), k.repeat_interleave(shared, 2), v, level_scales)
    )
    decays = to_chunks(g.unsqueeze(-1), chunks).squeeze(-1).unflatten(0, (-1, batch))
    between, from_start, to_end = scalar_decays(decays)
    o = ((q @ k.mT) * between * _weights_inside(levels)) @ v
    ends = F.pad(decays.double().sum(-1).cumsum(0), (0, 0) * 2 + (1, 0))
    blocks = (k * to_end.unsqueeze(-1)).mT @ v
    earlier = None if before is None else before.ht
    o, ht = _climb(
        o, q * from_start.unsqueeze(-1), levels, blocks, ends, earlier, first, tokens // CHUNK
    )
    o = from_chunks((o * scale).flatten(0, 1), chunks, v.dtype)[:, kept:].to(inputs[2].dtype)
    rest = tokens % CHUNK
    held = [
        F.pad(x[:, tokens - rest :], (0, 0) * (x.dim() - 2) + (0, CHUNK - rest)) for x in inputs
    ]
    offsets = torch.full((batch,), first * CHUNK + tokens, dtype=torch.int32, device=g.device)
    return o, State(ht, offsets, *held)


@lru_cache(maxsize=8)
def _level_masks(size: int, num_levels: int, device: torch.device) -> Tensor:
    """[C, C, L] one where token i (first) reads token j at level l."""
    tokens = torch.arange(size, device=device)
    differ = tokens[:, None] ^ tokens
    powers = 1 << torch.arange(num_levels, device=device)
    # bits of a number: how many powers of two are not above it
    level = (differ.unsqueeze(-1) >= powers).sum(-1, keepdim=True)
    return (level == torch.arange(num_levels, device=device)).float()


def _weights_inside(levels: Tensor) -> Tensor:
    """Weights [..., C, C] between the tokens of a chunk, from `levels` [..., C, L]."""
    inside = levels[..., :INSIDE]
    masks = _level_masks(levels.shape[-2], inside.shape[-1], levels.device)
    return torch.einsum("...il,ijl->...ij", inside, masks)


def _climb(
    o: Tensor,
    q_in: Tensor,
    levels: Tensor,
    blocks: Tensor,
    ends: Tensor,
    earlier: Tensor | None,
    first: int,
    num_full: int,
) -> tuple[Tensor, Tensor]:
    """Adds to `o` what tokens read from other chunks; also the final states, one per level.

    Chunks are counted from the first token of the sequence; this call holds those from `first` on.

    Args:
        o: outputs [R, B, H, C, V].
        q_in: queries, decayed from the start of their chunk [R, B, H, C, K].
        levels: [R, B, H, C, L].
        blocks: what each chunk adds to a state, decayed to its end [R, B, H, K, V].
        ends: log decays from `first` to before each chunk and after the last [R + 1, B, H].
        earlier: states of the blocks before `first` [B, levels, H, K, V].
        first: chunks before this call.
        num_full: full chunks of this call.
    """
    num_chunks, last = len(blocks), first + num_full
    states = []

    def fade(begin: list[int], end: list[int]) -> Tensor:
        """Decays between chunk boundaries; what lies outside of this call does not decay."""
        at = [[min(max(c - first, 0), num_chunks) for c in chunk] for chunk in (begin, end)]
        return (ends[at[1]] - ends[at[0]]).exp()[..., None, None].float()

    for b in range(max(1, (first + num_chunks - 1).bit_length(), last.bit_length())):
        begin = first >> b
        if begin % 2 and earlier is not None:
            blocks, begin = torch.cat((earlier[None, :, b], blocks)), begin - 1
        readers = [c for c in range(first, first + num_chunks) if c >> b & 1]
        if readers and INSIDE + b < levels.shape[-1]:
            here = torch.tensor([c - first for c in readers], device=o.device)
            left = blocks[[(c >> b) - 1 - begin for c in readers]]
            q = q_in[here] * fade([c >> b << b for c in readers], readers)
            o = o.index_add(0, here, (q @ left) * levels[here][..., INSIDE + b].unsqueeze(-1))
        if last >> b & 1:
            left = blocks[(last >> b) - 1 - begin]
            states.append(left * fade([last >> b << b], [last])[0])
        else:
            states.append(torch.zeros_like(blocks[0]))
        blocks = F.pad(blocks, (0, 0) * 4 + (0, len(blocks) % 2))
        rights = [i << b for i in range(begin + 1, begin + 1 + len(blocks), 2)]
        blocks = blocks[0::2] * fade(rights, [c + (1 << b) for c in rights]) + blocks[1::2]
    return o, torch.stack(states, 1)


def _fields(state: State) -> list[Tensor]:
    return [
        state.ht, state.offsets, state.q_prev, state.k_prev, state.v_prev, state.g_prev,
        state.level_scales_prev,
    ]  # fmt: skip


def _pick(state: State | None, index: int) -> State | None:
    return None if state is None else State(*(x[index : index + 1] for x in _fields(state)))


def _join(states: list[State]) -> State:
    """States of several sequences in one; levels that a sequence has not reached are zeros."""
    num_levels = max(state.ht.shape[1] for state in states)
    padded = [F.pad(x.ht, (0, 0) * 3 + (0, num_levels - x.ht.shape[1])) for x in states]
    rest = zip(*(_fields(state)[1:] for state in states), strict=True)
    return State(torch.cat(padded), *(torch.cat(x) for x in rest))
