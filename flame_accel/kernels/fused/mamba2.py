"""Mamba2's layer in training, keeping half of what `recurrence.mamba2` keeps for its backward pass.

Between the projections and the convolution, which are fla's, all is one function: it keeps the
output of the convolution, the gate, the step sizes and the outputs of the operator, and computes
the rest again. Shape letters are those of `ssd`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from fla.layers.mamba2 import Mamba2
from fla.modules.causal_conv1d import ops as convolution
from torch import Tensor, nn

from flame_accel.kernels.fused.gated_skip_norm import (
    GatedSum,
    norm_gated_sum,
    norm_gated_sum_gradients_except_x,
)
from flame_accel.kernels.fused.norm import LARGEST_WIDTH
from flame_accel.kernels.fused.ssd import (
    StepSizes,
    compute_ssd,
    compute_ssd_gradients,
    split_xbc_into_x_view_and_bc_copies,
)
from flame_accel.kernels.fused.ssd_states import index_chunks_of_sequences
from flame_accel.kernels.modules.padded_rows import LayerOutput

WIDEST_HEAD = 256


class _SSDNormLinear(torch.autograd.Function):
    """All activations and the weight of the linear map of one dtype, autocast off."""

    @staticmethod
    def forward(
        ctx: Any,
        xbc: Tensor,
        steps: Tensor,
        gate: Tensor,
        bias: Tensor,
        a_log: Tensor,
        skip: Tensor,
        norm_weight: Tensor,
        weight: Tensor,
        boundaries: Tensor | None,
        groups: int,
        step_bounds: tuple[float, float],
        eps: float,
    ) -> Tensor:
        sequences = index_chunks_of_sequences(boundaries)
        heads, inner = steps.shape[-1], gate.shape[-1]
        ctx.groups, ctx.eps, ctx.step_bounds = groups, eps, step_bounds
        ctx.sequences = sequences
        inputs = split_xbc_into_x_view_and_bc_copies(xbc, heads, inner // heads, groups)
        sizes = StepSizes(steps, bias, a_log, *step_bounds)
        y = compute_ssd(inputs, sizes, ctx.sequences).flatten(2)
        gated = GatedSum(y, xbc[..., :inner], gate, skip)
        result, rstd = norm_gated_sum(gated, norm_weight, eps)
        ctx.save_for_backward(xbc, steps, gate, bias, a_log, skip, norm_weight, weight, y, rstd)
        return F.linear(result, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        xbc, steps, gate, bias, a_log, skip, norm_weight, weight, y, rstd = ctx.saved_tensors
        heads, inner = steps.shape[-1], gate.shape[-1]
        dout = grads[0].reshape(-1, weight.shape[0])
        gated = GatedSum(y, xbc[..., :inner], gate, skip)
        normed = norm_gated_sum_gradients_except_x(
            gated, norm_weight, rstd, (dout @ weight).view(y.shape),
            with_result=ctx.needs_input_grad[7],
        )  # fmt: skip
        dweight = None
        if normed.result is not None:
            dweight = dout.t() @ normed.result.view(-1, inner)
        inputs = split_xbc_into_x_view_and_bc_copies(xbc, heads, inner // heads, ctx.groups)
        sizes = StepSizes(steps, bias, a_log, *ctx.step_bounds)
        dy = normed.y.view(inputs.x.shape)
        found = compute_ssd_gradients(inputs, sizes, ctx.sequences, dy, skip)
        dbias = found.steps.sum((0, 1)).to(bias.dtype)
        return (
            found.xbc, found.steps.to(steps.dtype), normed.gate, dbias,
            found.a_log.to(a_log.dtype), normed.skip, normed.weight, dweight,
            None, None, None, None,
        )  # fmt: skip


def ssd_norm_linear(
    layer: Mamba2, xbc: Tensor, steps: Tensor, gate: Tensor, cu_seqlens: Tensor | None
) -> Tensor:
    """All that a layer computes after its convolution: outputs [B, T, hidden size].

    Args:
        layer: One that `supports_mamba2_training_call`.
        xbc: x, B and C [B, T, H V + 2 G K], after the convolution.
        steps: Step sizes before bias and softplus [B, T, H].
        gate: [B, T, H V].
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    norm: Any = layer.norm
    with torch.autocast(xbc.device.type, enabled=False):
        return _SSDNormLinear.apply(
            xbc, steps, gate, layer.dt_bias, layer.A_log, layer.D, norm.weight,
            layer.out_proj.weight.to(xbc.dtype), cu_seqlens, layer.n_groups,
            tuple(layer.dt_limit), layer.norm_eps,
        )  # fmt: skip


def forward_mamba2(
    layer: Mamba2,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> LayerOutput:
    """As that of `recurrence.mamba2`, for calls that `supports_mamba2_training_call`."""
    projected = layer.in_proj(hidden_states)
    sizes = [layer.intermediate_size, layer.conv_dim, layer.num_heads]
    gate, xbc, steps = projected.split(sizes, -1)
    convolve: Any = convolution.causal_conv1d
    xbc, _ = convolve(
        x=xbc,
        weight=layer.conv1d.weight.squeeze(1),
        bias=layer.conv1d.bias,
        activation="silu",
        cu_seqlens=cu_seqlens,
    )
    return ssd_norm_linear(layer, xbc, steps, gate, cu_seqlens), None, past_key_values


def supports_mamba2_training_call(
    layer: Mamba2,
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
    return training and unpadded and hidden_states.numel() > 0 and _has_supported_mamba2_form(layer)


def _has_supported_mamba2_form(layer: Mamba2) -> bool:
    norm: Any = layer.norm
    inner, width, channels = layer.intermediate_size, layer.head_dim, layer.ssm_state_size
    powers = all(n & (n - 1) == 0 and 16 <= n <= WIDEST_HEAD for n in (width, channels))
    plain_norm = (
        norm is not None
        and not norm.norm_before_gate
        and norm.group_size in (None, inner)
        and getattr(norm, "bias", None) is None
    )
    weights = (layer.dt_bias, layer.A_log, layer.D, layer.out_proj.weight)
    # a DTensor, a quantized or an adapted map computes in its own way; ZeRO-3 gathers weights of
    # modules that are called
    plain_weights = all(type(w) is nn.Parameter and not hasattr(w, "ds_id") for w in weights)
    plain_output = type(layer.out_proj) is nn.Linear and layer.out_proj.bias is None
    activated = layer.activation in ("silu", "swish")
    return (
        powers and plain_norm and plain_weights and plain_output and activated
        and inner <= LARGEST_WIDTH
    )  # fmt: skip
