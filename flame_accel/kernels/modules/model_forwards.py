"""Forward passes of whole models, where fla's own drop `cu_seqlens` or misread padding."""

from collections.abc import Callable
from typing import Any

import torch
from fla.models.cache_utils import Cache
from fla.models.cat.modeling_cat import CATModel
from fla.models.modeling_utils import FLAForCausalLM, FLAModel
from fla.models.yoco.modeling_yoco import YOCOModel
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from flame_accel.config.errors import UserError
from flame_accel.kernels.modules.padded_rows import has_padding

ModelOutput = BaseModelOutputWithPast | tuple[Any, ...]
"""The tuple if `return_dict` is False."""

# what most of fla's models inherit; it hands all options on
forward_model = FLAModel.forward
forward_causal_lm = FLAForCausalLM.forward

_cat_forward: Callable[..., Any] = CATModel.forward
_yoco_forward: Callable[..., ModelOutput] = YOCOModel.forward


def forward_cat_without_padding(
    model: CATModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    chunk_size: int | None = None,
    output_hidden_states: bool | None = None,
    return_dict: bool | None = None,
    **options: Any,
) -> ModelOutput:
    """`CATModel.forward`, which refuses padding; here rows of one length are a batch without it.

    CAT cuts a row into chunks from its first token on, so that padding would move all of them.
    Outputs of padding are zeros.
    """
    if input_ids is None or attention_mask is None or not has_padding(attention_mask):
        return _cat_forward(
            model,
            input_ids,
            attention_mask,
            chunk_size=chunk_size,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            **options,
        )
    if attention_mask.shape != input_ids.shape:
        raise UserError(
            f"CAT has a mask of {attention_mask.shape[-1]} tokens for {input_ids.shape[-1]} tokens",
            where="attention_mask",
            remedy="give a mask of the shape of input_ids: CAT has no cache",
        )
    kept = attention_mask.bool()
    lengths = kept.sum(1)
    # a schedule of training would take the next size for every batch
    chunk_size = model._resolve_chunk_size(chunk_size)
    hidden: tuple[Tensor, ...] | None = None
    for length in filter(None, lengths.unique().tolist()):
        rows = (lengths == length).nonzero()
        columns = kept[rows.flatten()].nonzero()[:, 1].view(-1, length)
        o = _cat_forward(
            model,
            input_ids[rows, columns],
            chunk_size=chunk_size,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **options,
        )
        parts = (o.last_hidden_state, *(o.hidden_states or ()))
        if hidden is None:
            hidden = tuple(part.new_zeros(*input_ids.shape, part.shape[-1]) for part in parts)
        hidden = tuple(
            whole.index_put((rows, columns), part)
            for whole, part in zip(hidden, parts, strict=True)
        )
    assert hidden is not None, "every row of the mask was padding"
    output = BaseModelOutputWithPast(last_hidden_state=hidden[0], hidden_states=hidden[1:] or None)
    return output.to_tuple() if return_dict is False else output


def forward_yoco_unmasking_trailing_padding_refusing_cache(
    model: YOCOModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = None,
    **options: Any,
) -> ModelOutput:
    """`YOCOModel.forward`, which counts positions as if all padding were on the left.

    Padding after the last token of a row is no token's past: as tokens it changes nothing.

    Raises:
        UserError: There is such padding, and a cache is to be filled.
    """
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        caches = use_cache if use_cache is not None else model.config.use_cache
        if past_key_values is not None or (caches and not model.training):
            raise UserError(
                "YOCO fills no cache from a batch that has padding after the tokens",
                where="attention_mask",
                remedy="pad on the left (tokenizer.padding_side 'left') or set use_cache to False",
            )
        after_last = attention_mask.flip(1).cumsum(1).flip(1) == 0
        attention_mask = torch.where(after_last, 1, attention_mask)
    return _yoco_forward(
        model, input_ids, attention_mask, inputs_embeds, past_key_values, use_cache, **options
    )
