"""RWKV-7's layer in training, keeping a third of what fla's keeps for its backward pass.

Kept are the input, its projections (receptances, keys, values, and the narrow halves of the low
rank maps) and the outputs of the operator; `rwkv7_projections` and `rwkv7_mixer` compute the rest
again.
"""

from typing import Any

import torch
from fla.layers.rwkv7 import RWKV7Attention
from torch import Tensor, nn

from flame_accel.kernels.fused.rwkv7_mixer import mix_heads_and_project_output
from flame_accel.kernels.fused.rwkv7_projections import project_mixes
from flame_accel.kernels.fused.token_mix import mark_document_starts_as_int8
from flame_accel.kernels.fused.training_calls import (
    are_whole_parameters,
    is_unpadded_training_call,
)

WIDEST = 4096
"""Channels; a program of the mixes holds whole tokens."""


@torch.compiler.disable
def forward_rwkv7(
    layer: RWKV7Attention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    v_first: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None, Any, Tensor | None]:
    """As fla's `RWKV7Attention.forward`, for calls that `supports_rwkv7_training_call`."""
    device = hidden_states.device.type
    dtype = hidden_states.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        x = hidden_states.to(dtype).contiguous()
        mus = torch.cat([getattr(layer, f"x_{name}") for name in "rwkvag"]).flatten(1)
        narrow: Any = [layer.w_lora.lora[0], layer.a_lora.lora[0], layer.g_lora.lora[0]]
        maps: Any = [layer.r_proj, layer.k_proj, layer.v_proj, *narrow]
        sources = (0, 2, 3, 1, 4, 5)
        if layer.layer_idx != 0:
            maps.append(layer.v_lora.lora[0])
            sources = (*sources, 3)
        starts = mark_document_starts_as_int8(x, cu_seqlens)
        weights = [m.weight.to(dtype) for m in maps]
        projections = project_mixes(x, starts, mus, sources, weights)
        first = None
        if layer.layer_idx == 0:
            v_first = projections.v.view(*x.shape[:2], -1)
        else:
            assert v_first is not None
            first = v_first.to(dtype).reshape(projections.v.shape)
        out = mix_heads_and_project_output(layer, projections, first, x.shape[0], cu_seqlens)
    return out.view(x.shape), None, past_key_values, v_first


def supports_rwkv7_training_call(
    layer: RWKV7Attention, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> bool:
    """Whether a call is for ours: of training, without padding, with a layer of the usual form."""
    return is_unpadded_training_call(hidden_states, *args, **kwargs) and _has_supported_rwkv7_form(
        layer
    )


def _has_supported_rwkv7_form(layer: RWKV7Attention) -> bool:
    width = layer.head_dim
    low_rank = [layer.w_lora, layer.a_lora, layer.g_lora]
    if layer.layer_idx != 0:
        low_rank.append(layer.v_lora)
    linear = [layer.r_proj, layer.k_proj, layer.v_proj, layer.o_proj]
    linear += [part for lora in low_rank for part in (lora.lora[0], lora.lora[2])]
    activations = (nn.Tanh, nn.Identity, nn.Sigmoid, nn.Identity)
    biased = (True, True, False, True)
    norm: Any = layer.g_norm
    usual_norm = layer.fuse_norm and not norm.is_rms_norm and norm.bias is not None
    usual_maps = all(
        type(lora.activation) is kind and (lora.lora[2].bias is not None) == bias
        for lora, kind, bias in zip(low_rank, activations, biased, strict=False)
    )
    return (
        usual_norm and usual_maps
        and layer.value_dim == layer.key_dim == layer.hidden_size <= WIDEST
        and width & (width - 1) == 0 and 16 <= width <= 256
        and all(type(m) is nn.Linear for m in linear)
        and are_whole_parameters(layer.parameters())
    )  # fmt: skip
