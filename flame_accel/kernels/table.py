"""Which PyTorch implementation serves which operator of fla on a machine without a Triton device.

The table is data: nothing of torch or fla is imported for it. `install` reads it.
"""

from typing import NamedTuple


class Operator(NamedTuple):
    """One row."""

    fla: str
    """Where fla defines it, below `fla.`."""
    ours: str
    """`module.function` below `flame_accel.kernels`."""
    family: str
    """Operators that share an implementation."""


SERVED = (
    # S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, o_t = scale * S_t^T q_t    arXiv 2312.06635
    Operator("ops.gla.chunk.chunk_gla", "gla.chunk_gla", "decay"),
    Operator("ops.gla.fused_chunk.fused_chunk_gla", "gla.fused_chunk_gla", "decay"),
    Operator("ops.gla.fused_recurrent.fused_recurrent_gla", "gla.fused_recurrent_gla", "decay"),
    # the same with one decay per head (RetNet 2307.08621, Mamba2 2405.21060) or none
    Operator("ops.simple_gla.chunk.chunk_simple_gla", "gla.chunk_simple_gla", "decay"),
    Operator(
        "ops.simple_gla.fused_chunk.fused_chunk_simple_gla", "gla.fused_chunk_simple_gla", "decay"
    ),
    Operator(
        "ops.simple_gla.fused_recurrent.fused_recurrent_simple_gla",
        "gla.fused_recurrent_simple_gla",
        "decay",
    ),
    Operator("ops.simple_gla.parallel.parallel_simple_gla", "gla.parallel_simple_gla", "decay"),
    Operator("ops.utils.cumsum.chunk_global_cumsum", "gla.chunk_global_cumsum", "decay"),
    # softmax over earlier residual streams    arXiv 2603.15031
    Operator("ops.attnres.fused.fused_attnres", "attnres.fused_attnres", "attnres"),
    # (x - mean) / sqrt(var + eps) * weight + bias, no mean for RMS, times act(gate) where gated
    Operator("modules.norm.layernorm.layer_norm", "norm.layer_norm", "norm"),
    Operator("modules.norm.layernorm.rms_norm", "norm.rms_norm", "norm"),
    Operator("modules.norm.layernorm.group_norm", "norm.group_norm", "norm"),
    Operator("modules.norm.layernorm.layer_norm_linear", "norm.layer_norm_linear", "norm"),
    Operator("modules.norm.fused_norm_gate.layer_norm_gated", "norm.layer_norm_gated", "norm"),
    Operator("modules.norm.fused_norm_gate.rms_norm_gated", "norm.rms_norm_gated", "norm"),
    Operator(
        "modules.norm.fused_norm_gate.layer_norm_swish_gate_linear",
        "norm.layer_norm_swish_gate_linear",
        "norm",
    ),
    Operator(
        "modules.norm.fused_norm_gate.rms_norm_swish_gate_linear",
        "norm.rms_norm_swish_gate_linear",
        "norm",
    ),
    Operator("modules.norm.layernorm_gated.layernorm_fn", "norm.layernorm_fn", "norm"),
    Operator("modules.norm.layernorm_gated.rmsnorm_fn", "norm.rmsnorm_fn", "norm"),
    Operator("modules.norm.l2norm.l2norm", "norm.l2norm", "norm"),
    # y_t = act(sum_w weight_w x_{t-W+1+w}) + residual_t, per channel
    Operator("modules.causal_conv1d.ops.causal_conv1d", "convolution.causal_conv1d", "convolution"),
    Operator(
        "modules.causal_conv1d.ops.causal_conv1d_update",
        "convolution.causal_conv1d_update",
        "convolution",
    ),
    # elementwise functions, and gated linear units act(x) * y, with the linear map that follows
    Operator("modules.activations.ops.sigmoid", "activation.sigmoid", "activation"),
    Operator("modules.activations.ops.logsigmoid", "activation.logsigmoid", "activation"),
    Operator("modules.activations.ops.swish", "activation.swish", "activation"),
    Operator("modules.activations.ops.sqrelu", "activation.sqrelu", "activation"),
    Operator("modules.activations.ops.fast_gelu_impl", "activation.gelu", "activation"),
    Operator("modules.activations.ops.bias_gelu_impl", "activation.bias_gelu", "activation"),
    Operator("modules.activations.ops.swiglu", "activation.swiglu", "activation"),
    Operator("modules.activations.ops.swiglu_linear", "activation.swiglu_linear", "activation"),
    Operator("modules.activations.ops.sigmoidglu", "activation.sigmoidglu", "activation"),
    Operator(
        "modules.activations.ops.sigmoidglu_linear", "activation.sigmoidglu_linear", "activation"
    ),
    Operator("modules.activations.ops.powglu", "activation.powglu", "activation"),
    Operator("modules.activations.ops.powglu_linear", "activation.powglu_linear", "activation"),
    # rotation of channel pairs by position    arXiv 2104.09864
    Operator("modules.rotary.ops.rotary_embedding", "rotary.rotary_embedding", "rotary"),
    # -log softmax(logits)[target] with smoothing, z-loss, soft cap
    Operator(
        "modules.fused_cross_entropy.ops.cross_entropy_loss", "loss.cross_entropy_loss", "loss"
    ),
    Operator(
        "modules.fused_cross_entropy.ops.FusedCrossEntropyLoss.forward",
        "loss.forward_cross_entropy",
        "loss",
    ),
    Operator(
        "modules.fused_linear_cross_entropy.ops.fused_linear_cross_entropy_loss",
        "loss.fused_linear_cross_entropy_loss",
        "loss",
    ),
)
