"""Packed rows for transformers' own models: `cu_seqlens`, as fla's models take them.

A hook on the model tells its parts where documents begin, so that data, training and evaluation
know one way only: the embeddings by position ids that start again at 0, softmax attention by the
way of its mask (`kernels/attention/transformers_attention`; where that does not serve, transformers
forms a mask from the position ids), layers with a state by `cu_seq_lens_q`
(`kernels/transformers_layers`). Which models then do keep documents apart is measured in
`diagnosis/conformance`.
"""

import inspect
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flame_accel.config.errors import UserError
from flame_accel.kernels.attention.transformers_attention import (
    register_and_select_packed_attention,
    runs_sdpa_and_supports_flash_attention,
    set_packed_boundaries,
)
from flame_accel.kernels.transformers_layers import install_packed_functions

TRANSFORMERS_MODELS = "transformers.models."


def is_transformers_model(model_class: type[nn.Module]) -> bool:
    """Whether a model class is transformers' own, or derived from one; fla's are neither."""
    return any(base.__module__.startswith(TRANSFORMERS_MODELS) for base in model_class.__mro__)


def accept_cu_seqlens_if_transformers_model(model: PreTrainedModel) -> None:
    """Makes a model of transformers take `cu_seqlens`, in place; leaves all other models alone.

    The model may then be called with packed documents, `input_ids` [1, T] and `cu_seqlens` [N + 1].
    """
    parameters = inspect.signature(type(model).forward).parameters
    if not is_transformers_model(type(model)) or "cu_seqlens" in parameters:
        return
    modules = {type(module).__module__ for module in model.modules()}
    has_state = [
        install_packed_functions(sys.modules[name])
        for name in sorted(modules)
        if name.startswith(TRANSFORMERS_MODELS)
    ]
    tell = partial(_replace_cu_seqlens_before_forward, pass_cu_seq_lens_q=any(has_state))
    model.register_forward_pre_hook(tell, with_kwargs=True)
    model.register_forward_hook(_clear_packed_boundaries_after_forward, always_call=True)


def _replace_cu_seqlens_before_forward(
    model: PreTrainedModel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    pass_cu_seq_lens_q: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: replaces `cu_seqlens` by what the parts of the model understand."""
    if kwargs.get("cu_seqlens") is None:
        return args, kwargs
    inputs = dict(kwargs)
    cu_seqlens = inputs.pop("cu_seqlens")
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        raise UserError(
            f"{type(model).__name__} takes no position_ids, so it cannot know where documents begin"
        )
    inputs["position_ids"] = positions_in_documents(cu_seqlens, inputs["input_ids"].shape[1])
    # with a cache, position ids mean no documents
    inputs["use_cache"] = False
    if pass_cu_seq_lens_q:
        inputs["cu_seq_lens_q"] = cu_seqlens
    if runs_sdpa_and_supports_flash_attention(model):
        register_and_select_packed_attention(model)
        set_packed_boundaries(cu_seqlens)
    return args, inputs


def _clear_packed_boundaries_after_forward(model: nn.Module, args: Any, output: Any) -> None:
    """Forward hook, also after an error: what comes next is not packed."""
    set_packed_boundaries(None)


def positions_in_documents(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """Position of each token in its document, int64 [1, T]; no host synchronisation.

    Args:
        cu_seqlens: [N + 1] boundaries of the documents.
        num_tokens: Number of tokens T of all documents.
    """
    tokens = torch.arange(num_tokens, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens[1:], tokens, right=True)
    return (tokens - cu_seqlens[document]).unsqueeze(0)
