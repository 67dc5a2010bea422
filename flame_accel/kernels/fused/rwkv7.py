"""RWKV-7's layer in training, keeping a third of what fla's keeps for its backward pass.

Kept are the input, its projections (receptances, keys, values, and the narrow halves of the low
rank maps) and the outputs of the operator; mixes with the token before, decays, gates and the
operator's other inputs are computed again. The operator is fla's. Shapes: B batch, T tokens,
M = B T, H heads of V channels, N channels.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fla.layers.rwkv7 import RWKV7Attention
from fla.ops.generalized_delta_rule.dplr.chunk import ChunkDPLRDeltaRuleFunction
from torch import Tensor, nn

from flame_accel.kernels.fused.rwkv7_heads import (
    HeadInputs,
    HeadOutputs,
    OperatorInputs,
    finish_gradients,
    finish_heads,
    operator_input_gradients,
    prepare_operator_inputs,
)
from flame_accel.kernels.fused.token_mix import (
    mark_document_starts_as_int8,
    mix_gradients,
    mix_with_previous_token,
)
from flame_accel.kernels.operator_recompute import mode_or_memory_keeps_rwkv7_intermediates

OPERATOR: Any = ChunkDPLRDeltaRuleFunction
CHUNK = 64
LOWEST_LOG_DECAY = -0.6065306597126334
WIDEST = 4096
"""Channels; a program of the mixes holds whole tokens."""


class _MixedProjections(torch.autograd.Function):
    """Linear maps of mixes; keeps the input alone. All of one dtype, autocast off."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, starts: Tensor, mus: Tensor, sources: tuple[int, ...], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        mixes = mix_with_previous_token(x, starts, mus)
        ctx.save_for_backward(x, starts, mus, *weights)
        ctx.sources = sources
        return tuple(mixes[i] @ w.t() for i, w in zip(sources, weights, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, starts, mus, *weights = ctx.saved_tensors
        mixes = mix_with_previous_token(x, starts, mus)
        dmixes = torch.empty_like(mixes)
        dweights, written = [], set()
        for i, weight, grad in zip(ctx.sources, weights, grads, strict=True):
            if i in written:
                dmixes[i].addmm_(grad, weight)
            else:
                torch.mm(grad, weight, out=dmixes[i])
            written.add(i)
            dweights.append(grad.t() @ mixes[i])
        del mixes
        found = mix_gradients(x, starts, mus, dmixes)
        return found.x, None, found.mus, None, *dweights


class LowRankMaps(NamedTuple):
    """The wide halves of the low rank maps, or their gradients."""

    w: Tensor
    w_bias: Tensor
    a: Tensor
    a_bias: Tensor
    g: Tensor
    mix: Tensor | None
    mix_bias: Tensor | None


class HeadParameters(NamedTuple):
    """Parameters within heads."""

    k_k: Tensor
    k_a: Tensor
    r_k: Tensor
    norm: Tensor
    norm_bias: Tensor


class Projections(NamedTuple):
    """Outputs of `_MixedProjections` [M, ...]."""

    r: Tensor
    k: Tensor
    v: Tensor
    w: Tensor
    """Narrow halves of the low rank maps."""
    a: Tensor
    g: Tensor
    mix: Tensor | None


class _OperatorSettings(NamedTuple):
    batch: int
    heads: int
    eps: float
    cu_seqlens: Tensor | None
    keeps_intermediates: bool


class _Mixer(torch.autograd.Function):
    """From projections to outputs; what the operator reads is computed again for its backward."""

    @staticmethod
    def forward(
        ctx: Any, settings: _OperatorSettings, v_first: Tensor | None, *tensors: Tensor | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        projections, maps, heads, weight = _unflatten(tensors)
        inputs = _raw_head_inputs_from_low_rank_maps(projections, maps, heads, v_first, settings)
        g = torch.sigmoid(projections.g) @ maps.g.t()
        prepared = prepare_operator_inputs(inputs)
        ctx.operator = operator = _new_operator_context()
        o, _ = OPERATOR.forward(
            operator, *_shape_operands(projections.r, prepared, settings), 1.0, None, False,
            settings.cu_seqlens, None, True, LOWEST_LOG_DECAY, CHUNK,
            settings.keeps_intermediates, None,
        )  # fmt: skip
        o = o.view(inputs.k.shape)
        # the operator's seven inputs are those that are computed again
        kept = operator.kept[7:]
        del operator.kept
        ctx.settings, ctx.number = settings, len(tensors)
        ctx.save_for_backward(v_first, *tensors, o, *kept)
        outputs = HeadOutputs(
            o, projections.r, prepared.key, prepared.value, g,
            heads.norm, heads.norm_bias, heads.r_k, settings.eps,
        )  # fmt: skip
        return finish_heads(outputs) @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        settings = ctx.settings
        v_first, *rest = ctx.saved_tensors
        projections, maps, heads, weight = _unflatten(rest[: ctx.number])
        o, *kept = rest[ctx.number :]
        inputs = _raw_head_inputs_from_low_rank_maps(projections, maps, heads, v_first, settings)
        gate = torch.sigmoid(projections.g)
        prepared = prepare_operator_inputs(inputs)
        outputs = HeadOutputs(
            o, projections.r, prepared.key, prepared.value, gate @ maps.g.t(),
            heads.norm, heads.norm_bias, heads.r_k, settings.eps,
        )  # fmt: skip
        dout = grads[0]
        after = finish_gradients(outputs, dout @ weight)
        dweight = dout.t() @ after.out
        operands = _shape_operands(projections.r, prepared, settings)
        operator = ctx.operator
        operator.saved_tensors = (*operands, None, *kept)
        found = OPERATOR.backward(operator, after.o.view(operands[0].shape), None)
        del operator.saved_tensors
        dq, dkey, dvalue, derase, dwrite, dw = (x.reshape(inputs.k.shape) for x in found[:6])
        before = operator_input_gradients(
            inputs, OperatorInputs(dw, dkey, dvalue, derase, dwrite), after.key, after.value
        )
        dr = dq.add_(after.r)
        narrow = torch.tanh(projections.w)
        dnarrow = before.w_raw @ maps.w
        dgate = after.g @ maps.g
        dmix, dmaps_mix, dmaps_mix_bias = None, None, None
        if before.mix_raw is not None and maps.mix is not None and projections.mix is not None:
            dmix = before.mix_raw @ maps.mix
            dmaps_mix = before.mix_raw.t() @ projections.mix
            dmaps_mix_bias = before.mix_raw.sum(0)
        dprojections = Projections(
            r=dr,
            k=before.k,
            v=before.v,
            w=dnarrow * (1 - narrow * narrow),
            a=before.a_raw @ maps.a,
            g=dgate * gate * (1 - gate),
            mix=dmix,
        )
        dmaps = LowRankMaps(
            w=before.w_raw.t() @ narrow,
            w_bias=before.w_raw.sum(0),
            a=before.a_raw.t() @ projections.a,
            a_bias=before.a_raw.sum(0),
            g=after.g.t() @ gate,
            mix=dmaps_mix,
            mix_bias=dmaps_mix_bias,
        )
        dheads = HeadParameters(before.k_k, before.k_a, after.r_k, after.weight, after.bias)
        return None, before.v_first, *dprojections, *dmaps, *dheads, dweight


class _Unflattened(NamedTuple):
    projections: Projections
    maps: LowRankMaps
    heads: HeadParameters
    weight: Tensor
    """Of the output projection."""


def _unflatten(tensors: Any) -> _Unflattened:
    first = len(Projections._fields)
    second = first + len(LowRankMaps._fields)
    return _Unflattened(
        Projections(*tensors[:first]),
        LowRankMaps(*tensors[first:second]),
        HeadParameters(*tensors[second:-1]),
        tensors[-1],
    )


def _raw_head_inputs_from_low_rank_maps(
    projections: Projections,
    maps: LowRankMaps,
    heads: HeadParameters,
    v_first: Tensor | None,
    settings: _OperatorSettings,
) -> HeadInputs:
    mix_raw = None
    if maps.mix is not None and projections.mix is not None:
        mix_raw = F.linear(projections.mix, maps.mix, maps.mix_bias)
    k = projections.k
    return HeadInputs(
        k=k,
        v=projections.v,
        v_first=v_first,
        w_raw=F.linear(torch.tanh(projections.w), maps.w, maps.w_bias),
        a_raw=F.linear(projections.a, maps.a, maps.a_bias),
        mix_raw=mix_raw,
        k_k=heads.k_k,
        k_a=heads.k_a,
        head_width=k.shape[1] // settings.heads,
    )


def _shape_operands(
    r: Tensor, prepared: OperatorInputs, settings: _OperatorSettings
) -> tuple[Tensor, ...]:
    """The operator's first six arguments [B, T, H, V]."""
    w, key, value, erase, write = prepared
    shape = (settings.batch, -1, settings.heads, r.shape[1] // settings.heads)
    return tuple(x.view(shape) for x in (r, key, value, erase, write, w))


def _new_operator_context() -> SimpleNamespace:
    """What fla's autograd function takes for its context, outside of autograd."""
    context = SimpleNamespace()

    def keep(*tensors: Tensor | None) -> None:
        context.kept = tensors

    context.save_for_backward = keep
    return context


def mix_heads_and_project_output(
    layer: RWKV7Attention,
    projections: Projections,
    v_first: Tensor | None,
    batch: int,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """All that a layer computes after its projections: outputs [M, N].

    Args:
        layer: One that `supports_rwkv7_training_call`.
        projections: As of `_MixedProjections`.
        v_first: Values of the first layer [M, H V]; None in that layer.
        batch: Number of rows.
        cu_seqlens: Boundaries of the documents of a packed batch (then B = 1).
    """
    dtype = projections.k.dtype
    w, a, g = layer.w_lora.lora[2], layer.a_lora.lora[2], layer.g_lora.lora[2]
    mix: Any = layer.v_lora.lora[2] if v_first is not None else None
    weights: Any = (w.weight, w.bias, a.weight, a.bias, g.weight)
    weights += (None, None) if mix is None else (mix.weight, mix.bias)
    weights = [None if x is None else x.to(dtype) for x in weights]
    maps = LowRankMaps(*weights)
    norm: Any = layer.g_norm
    heads = HeadParameters(layer.k_k, layer.k_a, layer.r_k, norm.weight, norm.bias)
    k = projections.k
    memory = None
    if k.device.type == "cuda":
        memory = torch.cuda.get_device_properties(k.device).total_memory
    keeps = mode_or_memory_keeps_rwkv7_intermediates(layer, len(k), memory)
    settings = _OperatorSettings(batch, layer.num_heads, norm.eps, cu_seqlens, keeps)
    return _Mixer.apply(
        settings, v_first, *projections, *maps, *heads, layer.o_proj.weight.to(dtype)
    )


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
        found = _MixedProjections.apply(x, starts, mus, sources, *weights)
        projections = Projections(*found, *[None] * (7 - len(found)))
        first = None
        if layer.layer_idx == 0:
            v_first = projections.v.view(*x.shape[:2], -1)
        else:
            assert v_first is not None
            first = v_first.to(dtype).reshape(projections.v.shape)
        out = mix_heads_and_project_output(layer, projections, first, x.shape[0], cu_seqlens)
    return out.view(x.shape), None, past_key_values, v_first


def supports_rwkv7_training_call(
    layer: RWKV7Attention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    *args: Any,
    **kwargs: Any,
) -> bool:
    """Whether a call is for ours: of training, without padding, with a layer of the usual form."""
    training = torch.is_grad_enabled() and hidden_states.shape[1] > 1
    unpadded = attention_mask is None and past_key_values is None and not use_cache
    return training and unpadded and hidden_states.numel() > 0 and _has_supported_rwkv7_form(layer)


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
        # a DTensor, a quantized or an adapted map computes in its own way; ZeRO-3 gathers weights
        # of modules that are called
        and all(type(m) is nn.Linear for m in linear)
        and all(type(p) is nn.Parameter and not hasattr(p, "ds_id") for p in layer.parameters())
    )  # fmt: skip
