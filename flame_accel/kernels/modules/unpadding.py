"""fla's functions that take padding out of a batch, with checks of what they would compute wrongly.

They gather by an index made of the mask. Where the mask is not that of the states, or a row has no
token at all, they gather other tokens, or none, without a word, or read out of bounds on a GPU.
"""

from typing import Any

from fla.layers import utils
from fla.layers.cyfa import CyclicFlowAttention
from torch import Tensor

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.padded_rows import check_every_row_has_token

_cyclic_flow_forward = CyclicFlowAttention.forward
_get_unpad_indices_and_cu = utils.get_unpad_indices_and_cu
_unpad_input: Any = utils.unpad_input


def check_rows_nonempty_and_get_unpad_indices_and_cu(
    attention_mask: Tensor, q_len: int | None = None
) -> tuple[Tensor, Tensor]:
    """Indices of the tokens in the flattened batch, and boundaries of the rows [B + 1].

    Args:
        attention_mask: [B, at least `q_len`], 0 for padding; the last `q_len` count.
        q_len: All of them if None.

    Raises:
        UserError: A row has no token.
    """
    check_every_row_has_token(attention_mask if q_len is None else attention_mask[:, -q_len:])
    return _get_unpad_indices_and_cu(attention_mask, q_len)


def check_mask_fits_states_and_rows_nonempty_then_unpad(
    q: Any, states: tuple[Tensor, ...], attention_mask: Tensor, q_len: int, keepdim: bool = False
) -> Any:
    """As fla's function: `q` and `states` [B, S, ...] without padding, and their layout.

    Args:
        q: Queries [B, T, ...] or a tuple of them.
        states: [B, S, ...] keys and values, of earlier tokens too.
        attention_mask: [B, S], 0 for padding.
        q_len: T; 1 or S.
        keepdim: Whether results keep a first dimension of 1.

    Raises:
        UserError: The mask is not that of the states, or a row has no token.
    """
    if attention_mask.shape[1] != states[0].shape[1]:
        raise UserError(
            f"a mask of {attention_mask.shape[1]} tokens for {states[0].shape[1]} cached ones",
            where="attention_mask",
            remedy="give a batch with padding in one pass, not in pieces",
        )
    check_every_row_has_token(attention_mask)
    return _unpad_input(q, states, attention_mask, q_len, keepdim)


def forward_cyclic_flow_if_every_row_has_token(
    layer: CyclicFlowAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    **options: Any,
) -> Any:
    """`CyclicFlowAttention.forward`, which takes padding out by itself.

    Raises:
        UserError: A row has no token.
    """
    if attention_mask is not None:
        check_every_row_has_token(attention_mask[:, -hidden_states.shape[1] :])
    return _cyclic_flow_forward(layer, hidden_states, attention_mask, *args, **options)
