"""Which PyTorch implementation serves which operator of fla.

The table is data: nothing of torch or fla is imported for it. `install` reads it.
"""

from typing import NamedTuple


class Family(NamedTuple):
    """Operators that share an implementation."""

    module: str
    """Ours, below `flame_accel.kernels.`"""
    formula: str
    """What they compute, with the arXiv number of the paper that says it."""
    serves: dict[str, str]
    """fla's module, below `fla.` -> names in it, each one also the name in ours (else `a=b`)."""


FAMILIES = (
    Family(
        "recurrence.gla",
        "S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t; g per channel, head or "
        "none (2312.06635, 2307.08621, 2405.21060)",
        {
            "ops.gla.chunk": "chunk_gla",
            "ops.gla.fused_chunk": "fused_chunk_gla",
            "ops.gla.fused_recurrent": "fused_recurrent_gla",
            "ops.simple_gla.chunk": "chunk_simple_gla",
            "ops.simple_gla.fused_chunk": "fused_chunk_simple_gla",
            "ops.simple_gla.fused_recurrent": "fused_recurrent_simple_gla",
            "ops.simple_gla.parallel": "parallel_simple_gla",
            "ops.utils.cumsum": "chunk_global_cumsum",
        },
    ),
    Family(
        "modules.attnres",
        "softmax over earlier residual streams (2603.15031)",
        {"ops.attnres.fused": "fused_attnres"},
    ),
    Family(
        "modules.norm",
        "(x - mean) / sqrt(var + eps) weight + bias; no mean for RMS; times act(gate) where gated",
        {
            "modules.norm.layernorm": "layer_norm rms_norm group_norm layer_norm_linear",
            "modules.norm.fused_norm_gate": "layer_norm_gated rms_norm_gated "
            "layer_norm_swish_gate_linear rms_norm_swish_gate_linear",
            "modules.norm.layernorm_gated": "layernorm_fn rmsnorm_fn",
            "modules.norm.l2norm": "l2norm",
        },
    ),
    Family(
        "modules.convolution",
        "y_t = act(sum_w weight_w x_{t-W+1+w}) + residual_t, per channel",
        {"modules.causal_conv1d.ops": "causal_conv1d causal_conv1d_update"},
    ),
    Family(
        "modules.activation",
        "elementwise functions; gated linear units act(x) y, with the linear map that follows",
        {
            "modules.activations.ops": "sigmoid logsigmoid swish sqrelu fast_gelu_impl=gelu "
            "bias_gelu_impl=bias_gelu swiglu swiglu_linear sigmoidglu sigmoidglu_linear powglu "
            "powglu_linear",
        },
    ),
    Family(
        "modules.rotary",
        "rotation of channel pairs by position (2104.09864)",
        {"modules.rotary.ops": "rotary_embedding"},
    ),
    Family(
        "modules.loss",
        "-log softmax(logits)[target] with smoothing, z-loss, soft cap",
        {
            "modules.fused_cross_entropy.ops": "cross_entropy_loss "
            "FusedCrossEntropyLoss.forward=forward_cross_entropy",
            "modules.fused_linear_cross_entropy.ops": "fused_linear_cross_entropy_loss",
        },
    ),
)


def _flat() -> dict[str, str]:
    rows = {}
    for family in FAMILIES:
        for module, names in family.serves.items():
            for name in names.split():
                theirs, _, ours = name.partition("=")
                rows[f"{module}.{theirs}"] = f"{family.module}.{ours or theirs}"
    return rows


SERVED = _flat()
"""Every operator, below `fla.` -> the function that serves it, below `flame_accel.kernels.`."""
