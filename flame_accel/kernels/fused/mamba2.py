"""Mamba2's layer in training, keeping half of what `recurrence.mamba2` keeps for its backward pass.

All that follows the input projection is one function: it keeps the projection's output, that of the
convolution and that of the operator, and computes the rest again. Shape letters are those of `ssd`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fla.layers.mamba2 import Mamba2
from torch import Tensor, nn

from flame_accel.kernels.fused.causal_conv import (
    WINDOW,
    Convolution,
    convolution_gradients,
    convolve_with_silu,
)
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
from flame_accel.kernels.fused.token_mix import mark_document_starts_as_int8
from flame_accel.kernels.fused.training_calls import (
    are_whole_parameters,
    is_unpadded_training_call,
)
from flame_accel.kernels.modules.padded_rows import LayerOutput

WIDEST_HEAD = 256


class _MixerSettings(NamedTuple):
    groups: int
    step_bounds: tuple[float, float]
    eps: float


class _ProjectedParts(NamedTuple):
    """Views of the input projection's output, or of its gradient."""

    gate: Tensor
    """[B, T, H V]."""
    xbc: Tensor
    """x, B and C [B, T, H V + 2 G K], before the convolution."""
    steps: Tensor
    """Step sizes before bias and softplus [B, T, H]."""


class _Mixer(torch.autograd.Function):
    """From the input projection to the output; all but vectors of one dtype, autocast off."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        bias: Tensor,
        a_log: Tensor,
        skip: Tensor,
        norm_weight: Tensor,
        weight: Tensor,
        boundaries: Tensor | None,
        settings: _MixerSettings,
    ) -> Tensor:
        ctx.sequences = sequences = index_chunks_of_sequences(boundaries)
        ctx.settings = settings
        parts = _split_projected(projected, len(conv_weight), len(a_log))
        heads, inner = len(a_log), parts.gate.shape[-1]
        xbc = convolve_with_silu(Convolution(parts.xbc, conv_weight, conv_bias), sequences)
        inputs = split_xbc_into_x_view_and_bc_copies(xbc, heads, inner // heads, settings.groups)
        sizes = StepSizes(parts.steps, bias, a_log, *settings.step_bounds)
        y = compute_ssd(inputs, sizes, sequences).flatten(2)
        gated = GatedSum(y, xbc[..., :inner], parts.gate, skip)
        result, rstd = norm_gated_sum(gated, norm_weight, settings.eps)
        ctx.save_for_backward(
            projected, conv_weight, conv_bias, bias, a_log, skip, norm_weight, weight, xbc, y, rstd
        )
        return F.linear(result, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        projected, conv_weight, conv_bias, bias, a_log, skip, norm_weight, weight, xbc, y, rstd = (
            ctx.saved_tensors
        )
        settings, sequences = ctx.settings, ctx.sequences
        parts = _split_projected(projected, len(conv_weight), len(a_log))
        # parts of the gradient are written where they belong
        dprojected = torch.empty_like(projected)
        dparts = _split_projected(dprojected, len(conv_weight), len(a_log))
        heads, inner = len(a_log), parts.gate.shape[-1]
        dout = grads[0].reshape(-1, weight.shape[0])
        gated = GatedSum(y, xbc[..., :inner], parts.gate, skip)
        normed = norm_gated_sum_gradients_except_x(
            gated, norm_weight, rstd, (dout @ weight).view(y.shape), dparts.gate,
            with_result=ctx.needs_input_grad[7],
        )  # fmt: skip
        dweight = None
        if normed.result is not None:
            dweight = dout.t() @ normed.result.view(-1, inner)
        inputs = split_xbc_into_x_view_and_bc_copies(xbc, heads, inner // heads, settings.groups)
        sizes = StepSizes(parts.steps, bias, a_log, *settings.step_bounds)
        dy = normed.y.view(inputs.x.shape)
        found = compute_ssd_gradients(inputs, sizes, sequences, dy, skip)
        dparts.steps.copy_(found.steps)
        convolved = convolution_gradients(
            Convolution(parts.xbc, conv_weight, conv_bias),
            mark_document_starts_as_int8(projected, sequences.boundaries),
            found.xbc,
            dparts.xbc,
        )
        return (
            dprojected, convolved.weight, convolved.bias,
            found.steps.sum((0, 1)).to(bias.dtype), found.a_log.to(a_log.dtype),
            normed.skip, normed.weight, dweight, None, None,
        )  # fmt: skip


def _split_projected(projected: Tensor, conv_width: int, heads: int) -> _ProjectedParts:
    sizes = [projected.shape[-1] - conv_width - heads, conv_width, heads]
    return _ProjectedParts(*projected.split(sizes, -1))


def mix_projected(layer: Mamba2, projected: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """All that a layer computes after its input projection: outputs [B, T, hidden size].

    Args:
        layer: One that `supports_mamba2_training_call`.
        projected: Gate, x, B, C and step sizes [B, T, 2 H V + 2 G K + H], contiguous.
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch (then B = 1).
    """
    norm: Any = layer.norm
    low, high = layer.dt_limit
    settings = _MixerSettings(layer.n_groups, (low, high), layer.norm_eps)
    with torch.autocast(projected.device.type, enabled=False):
        return _Mixer.apply(
            projected, layer.conv1d.weight.squeeze(1), layer.conv1d.bias, layer.dt_bias,
            layer.A_log, layer.D, norm.weight, layer.out_proj.weight.to(projected.dtype),
            cu_seqlens, settings,
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
    """As `recurrence.mamba2.forward_mamba2`, for calls that `supports_mamba2_training_call`."""
    projected = layer.in_proj(hidden_states).contiguous()
    return mix_projected(layer, projected, cu_seqlens), None, past_key_values


def supports_mamba2_training_call(
    layer: Mamba2, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> bool:
    """Whether a call is for ours: of training, without padding, with a layer of the usual form."""
    return is_unpadded_training_call(hidden_states, *args, **kwargs) and _has_supported_mamba2_form(
        layer
    )


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
    weights = (
        layer.dt_bias, layer.A_log, layer.D, layer.out_proj.weight, layer.conv1d.weight,
        layer.conv1d.bias,
    )  # fmt: skip
    plain_output = type(layer.out_proj) is nn.Linear and layer.out_proj.bias is None
    convolved = layer.activation in ("silu", "swish") and layer.conv_kernel_size == WINDOW
    return (
        powers and plain_norm and are_whole_parameters(weights) and plain_output and convolved
        and inner <= LARGEST_WIDTH
    )  # fmt: skip
