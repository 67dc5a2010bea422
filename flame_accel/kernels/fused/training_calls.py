"""Conditions that the fused layers share: which calls and which parameters they are for."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


def is_unpadded_training_call(
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    *args: Any,
    **kwargs: Any,
) -> bool:
    """Whether a call of a layer learns from whole sequences: no padding, no cache, some tokens.

    Args:
        hidden_states: [B, T, N].
        attention_mask: As of fla's layers.
        past_key_values: As of fla's layers.
        use_cache: As of fla's layers.
        args: Others, which do not matter.
        kwargs: Others, which do not matter.
    """
    learns = torch.is_grad_enabled() and hidden_states.shape[1] > 1 and hidden_states.numel() > 0
    return learns and attention_mask is None and past_key_values is None and not use_cache


def are_whole_parameters(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all are plain parameters of this process.

    A DTensor, a quantized or an adapted weight computes in its own way; ZeRO-3 gathers weights of
    modules that are called. A fake one stands for a plain one.
    """
    plain = (nn.Parameter, FakeTensor)
    return all(x is None or (type(x) in plain and not hasattr(x, "ds_id")) for x in tensors)
