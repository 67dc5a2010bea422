"""From RWKV-7's projections to the output of its layer, with fla's operator in between.

Kept are the projections and the outputs of the operator; decays, gates and the operator's other
inputs are computed again (2503.14456). Shapes: B batch, T tokens, M = B T, H heads of V channels,
N channels.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fla.layers.rwkv7 import RWKV7Attention
from fla.ops.generalized_delta_rule.dplr.chunk import ChunkDPLRDeltaRuleFunction
from torch import Tensor

from flame_accel.kernels.fused.rwkv7_head_outputs import (
    HeadOutputs,
    finish_gradients,
    finish_heads,
)
from flame_accel.kernels.fused.rwkv7_operator_inputs import (
    HeadInputs,
    OperatorInputs,
    operator_input_gradients,
    prepare_operator_inputs,
)
from flame_accel.kernels.fused.rwkv7_projections import Projections
from flame_accel.kernels.operator_recompute import mode_or_memory_keeps_rwkv7_intermediates

OPERATOR: Any = ChunkDPLRDeltaRuleFunction
CHUNK = 64
LOWEST_LOG_DECAY = -0.6065306597126334


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


class _OperatorSettings(NamedTuple):
    batch: int
    heads: int
    head_width: int
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
        inputs = _raw_head_inputs_from_low_rank_maps(projections, maps, heads, v_first)
        g = torch.sigmoid(projections.g) @ maps.g.t()
        prepared = prepare_operator_inputs(inputs, settings.head_width)
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
            heads.norm, heads.norm_bias, heads.r_k,
        )  # fmt: skip
        return finish_heads(outputs, settings.eps) @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        settings = ctx.settings
        v_first, *rest = ctx.saved_tensors
        projections, maps, heads, weight = _unflatten(rest[: ctx.number])
        o, *kept = rest[ctx.number :]
        inputs = _raw_head_inputs_from_low_rank_maps(projections, maps, heads, v_first)
        gate = torch.sigmoid(projections.g)
        prepared = prepare_operator_inputs(inputs, settings.head_width)
        outputs = HeadOutputs(
            o, projections.r, prepared.key, prepared.value, gate @ maps.g.t(),
            heads.norm, heads.norm_bias, heads.r_k,
        )  # fmt: skip
        dout = grads[0]
        after, out = finish_gradients(outputs, settings.eps, dout @ weight)
        dweight = dout.t() @ out
        operands = _shape_operands(projections.r, prepared, settings)
        operator = ctx.operator
        operator.saved_tensors = (*operands, None, *kept)
        found = OPERATOR.backward(operator, after.o.view(operands[0].shape), None)
        del operator.saved_tensors
        dq, dkey, dvalue, derase, dwrite, dw = (x.reshape(inputs.k.shape) for x in found[:6])
        before = operator_input_gradients(
            inputs, settings.head_width, OperatorInputs(dw, dkey, dvalue, derase, dwrite),
            after.key, after.value,
        )  # fmt: skip
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
) -> HeadInputs:
    mix_raw = None
    if maps.mix is not None and projections.mix is not None:
        mix_raw = F.linear(projections.mix, maps.mix, maps.mix_bias)
    return HeadInputs(
        k=projections.k,
        v=projections.v,
        v_first=v_first,
        w_raw=F.linear(torch.tanh(projections.w), maps.w, maps.w_bias),
        a_raw=F.linear(projections.a, maps.a, maps.a_bias),
        mix_raw=mix_raw,
        k_k=heads.k_k,
        k_a=heads.k_a,
    )


def _shape_operands(
    r: Tensor, prepared: OperatorInputs, settings: _OperatorSettings
) -> tuple[Tensor, ...]:
    """The operator's first six arguments [B, T, H, V]."""
    w, key, value, erase, write = prepared
    shape = (settings.batch, -1, settings.heads, settings.head_width)
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
        projections: As of `project_mixes`.
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
    heads_and_width = layer.num_heads, k.shape[1] // layer.num_heads
    settings = _OperatorSettings(batch, *heads_and_width, norm.eps, cu_seqlens, keeps)
    return _Mixer.apply(
        settings, v_first, *projections, *maps, *heads, layer.o_proj.weight.to(dtype)
    )
