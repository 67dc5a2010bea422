"""Inputs of fused modules for `test_gpu_kernels`: norms, convolutions, activations, losses."""

from collections.abc import Callable
from typing import Any

import torch

from tests.helpers.parity import FIXED, Arguments, Case, Draw, Looser

CHANNELS, CLASSES = 128, 512
WEIGHTS = frozenset({"weight", "bias", "norm_weight", "norm_bias"})
"""Parameters are fp32 under autocast."""
NONE: frozenset[str] = frozenset()
ANGLES = frozenset({"cos", "sin"})

Function = Callable[..., Any]


def norm(d: Draw) -> Arguments:
    parameters = {"weight": d.parameter(CHANNELS), "bias": d.parameter(CHANNELS)}
    return {"x": d.normal(CHANNELS) + 0.5, **parameters}


def norm_prenorm(d: Draw) -> Arguments:
    """With a residual stream that goes in and out."""
    stream = {"residual": d.normal(CHANNELS), "prenorm": True, "residual_in_fp32": True}
    return {**norm(d), **stream}


def group_norm(d: Draw) -> Arguments:
    return {**norm(d), "num_groups": 4}


def norm_gated(d: Draw) -> Arguments:
    return {**norm(d), "g": d.normal(CHANNELS)}


def norm_gated_sigmoid(d: Draw) -> Arguments:
    return {**norm_gated(d), "activation": "sigmoid"}


def norm_mamba(d: Draw) -> Arguments:
    return {**norm(d), "z": d.normal(CHANNELS), "group_size": 32, "norm_before_gate": False}


def norm_linear(d: Draw) -> Arguments:
    inputs = norm(d)
    parameters = {f"norm_{name}": inputs.pop(name) for name in ("weight", "bias")}
    weight = d.parameter(64, CHANNELS) / CHANNELS**0.5
    return {**inputs, **parameters, "linear_weight": weight, "linear_bias": d.parameter(64)}


def norm_gated_linear(d: Draw) -> Arguments:
    return {**norm_linear(d), "g": d.normal(CHANNELS)}


def only_x(d: Draw) -> Arguments:
    return {"x": d.normal(CHANNELS)}


def convolution(d: Draw) -> Arguments:
    return {
        "x": d.normal(CHANNELS),
        "weight": d.parameter(CHANNELS, 4),
        "bias": d.parameter(CHANNELS),
        "residual": d.normal(CHANNELS),
        "initial_state": d.state(CHANNELS, 4),
        "output_final_state": True,
        "activation": "silu",
    }


def convolution_step(d: Draw) -> Arguments:
    """One token, and a cache that is changed in place."""
    inputs = convolution(d)
    step = {name: inputs[name][:, :1] for name in ("x", "residual")}
    names = ("weight", "bias", "activation")
    return {**step, **{name: inputs[name] for name in names}, "cache": inputs["initial_state"]}


def without_oldest(function: Function, inputs: Arguments) -> Any:
    """The next token needs three of the four inputs that are kept; fla has no gradient of one."""
    y, state = function(**inputs)
    return y, state[..., 1:]


def in_order(function: Function, inputs: Arguments) -> Any:
    """For fla's activations, whose arguments have no names."""
    return function(*inputs.values())


def in_place(function: Function, inputs: Arguments) -> Any:
    inputs["cache"] = inputs["cache"].clone()
    return function(**inputs), inputs["cache"]


def shift(d: Draw) -> Arguments:
    return {"x": d.normal(CHANNELS), "cache": d.state(CHANNELS), "output_cache": True}


def mixes(d: Draw) -> Arguments:
    """The inputs of RWKV7's projections."""
    parameters = {f"x{name}": d.parameter(1, 1, CHANNELS) for name in "rwkvag"}
    return {"hidden_states": d.normal(CHANNELS), "delta": d.normal(CHANNELS), **parameters}


def rwkv7_keys(d: Draw) -> Arguments:
    return {"k": d.normal(CHANNELS), "a": d.unit_interval(CHANNELS), "ka": d.parameter(CHANNELS)}


def rwkv7_outputs(d: Draw) -> Arguments:
    heads = {name: d.normal(2, 64) for name in ("r", "k", "v")}
    return {**heads, "r_k": d.parameter(2, 64), "o": d.normal(128), "g": d.normal(128)}


def rwkv7_channels(d: Draw) -> Arguments:
    """Not in place, where fla writes gradients over the inputs."""
    weights = {
        "key_weight": d.parameter(CHANNELS, 64) / CHANNELS**0.5,
        "value_weight": d.parameter(64, CHANNELS) / 8,
    }
    previous, mix = d.state(CHANNELS), d.parameter(1, 1, CHANNELS)
    return {"x": d.normal(CHANNELS), "x_prev": previous, "x_k": mix, **weights, "inplace": False}


def pair(d: Draw) -> Arguments:
    return {"x": d.normal(CHANNELS), "y": d.normal(CHANNELS)}


def pair_linear(d: Draw) -> Arguments:
    weight = d.parameter(64, CHANNELS) / CHANNELS**0.5
    return {**pair(d), "weight": weight, "bias": d.parameter(64)}


def biased(d: Draw) -> Arguments:
    return {"y": d.normal(CHANNELS), "bias": d.parameter(CHANNELS)}


def rotation(d: Draw) -> Arguments:
    angles = torch.arange(d.layout.tokens)[:, None] * 0.9 ** torch.arange(16)
    return {"x": d.normal(2, 64), "cos": angles.cos(), "sin": angles.sin()}


def rotation_interleaved(d: Draw) -> Arguments:
    return {**rotation(d), "interleaved": True}


def targets(d: Draw) -> torch.Tensor:
    """A class for every token; some are ignored."""
    shape = (d.layout.rows * d.layout.tokens,)
    labels = torch.randint(CLASSES, shape, generator=d.generator)
    return labels.masked_fill(torch.rand(shape, generator=d.generator) < 0.2, -100)


def cross_entropy(d: Draw) -> Arguments:
    extras = {"label_smoothing": 0.1, "lse_square_scale": 1e-2, "logit_scale": 0.7}
    logits = 3 * d.normal(CLASSES).flatten(0, 1)
    return {"logits": logits, "target": targets(d), "logit_softcapping": 8.0, **extras}


def linear_cross_entropy(d: Draw) -> Arguments:
    hidden = d.normal(CHANNELS).flatten(0, 1)
    parameters = {
        "weight": d.parameter(CLASSES, CHANNELS) / CHANNELS**0.5,
        "bias": d.parameter(CLASSES),
    }
    return {"x": hidden, "target": targets(d), **parameters, "label_smoothing": 0.1}


def distillation(d: Draw) -> Arguments:
    student, teacher = d.normal(CHANNELS).flatten(0, 1), d.normal(64).flatten(0, 1)
    return {
        "x": student,
        "target_x": teacher,
        "weight": d.parameter(CLASSES, CHANNELS) / CHANNELS**0.5,
        "target_weight": d.parameter(CLASSES, 64) / 8,
    }


def policy(d: Draw) -> Arguments:
    rows, tokens = d.layout.rows, d.layout.tokens
    return {
        "logits": d.normal(CLASSES),
        "ref_logp": -3 - d.normal()[:, 1:].abs(),
        "input_ids": torch.randint(CLASSES, (rows, tokens + 6), generator=d.generator),
        "advantages": d.state(),
        "completion_mask": (d.normal()[:, 1:] > -1).int(),
        "save_kl": True,
    }


def depth(d: Draw) -> Arguments:
    streams = {f"residual{index}": d.normal(CHANNELS) for index in range(3)}
    weights = {
        "query": d.parameter(CHANNELS),
        "rms_weight": d.parameter(CHANNELS),
        "output_rms_weight": d.parameter(CHANNELS),
    }
    return {**streams, **weights}


def with_list_of_streams(function: Function, inputs: Arguments) -> Any:
    streams = [inputs.pop(f"residual{index}") for index in range(3)]
    return function(residuals=streams, **inputs)


def fused(
    operator: str,
    build: Callable[[Draw], Arguments],
    variant: str = "",
    arithmetic: str = "elementwise",
    **options: Any,
) -> Case:
    """A case for which rows of one length are enough."""
    options = {"layouts": ("2x256",), "kept": WEIGHTS, **options}
    return Case(f"modules.{operator}", build, variant, arithmetic=arithmetic, **options)


TERNARY = Looser(
    "bf16",
    1e-1,
    # the share of those within a rounding of a boundary is about 2^-9, the error its square root
    "weights round to -1, 0 or 1: one that bf16 moves over a boundary changes by its whole size",
)
ACTIVATIONS = "activations.ops."
MODULES = (
    fused("norm.layernorm.layer_norm", norm),
    fused("norm.layernorm.layer_norm", norm_prenorm, "residual"),
    fused("norm.layernorm.rms_norm", norm),
    fused("norm.layernorm.rms_norm", norm_prenorm, "residual"),
    fused("norm.layernorm.group_norm", group_norm),
    fused("norm.layernorm.layer_norm_linear", norm_linear, arithmetic="products"),
    fused("norm.fused_norm_gate.layer_norm_gated", norm_gated),
    fused("norm.fused_norm_gate.rms_norm_gated", norm_gated),
    fused("norm.fused_norm_gate.rms_norm_gated", norm_gated_sigmoid, "sigmoid"),
    fused(
        "norm.fused_norm_gate.layer_norm_swish_gate_linear", norm_gated_linear,
        arithmetic="products",
    ),
    fused(
        "norm.fused_norm_gate.rms_norm_swish_gate_linear", norm_gated_linear, arithmetic="products"
    ),
    fused("norm.layernorm_gated.layernorm_fn", norm_mamba),
    fused("norm.layernorm_gated.rmsnorm_fn", norm_mamba),
    fused("norm.l2norm.l2norm", only_x),
    fused(
        "fused_bitlinear.layer_norm_linear_quant", norm_linear, arithmetic="products",
        looser=(TERNARY,),
    ),
    fused(
        "causal_conv1d.ops.causal_conv1d", convolution, layouts=(*FIXED, "ragged"),
        call=without_oldest,
    ),
    fused(
        "causal_conv1d.ops.causal_conv1d_update", convolution_step, call=in_place,
        forward_only="a step of generation",
    ),
    fused("token_shift.token_shift", shift, layouts=("2x256", "ragged")),
    *(
        fused(ACTIVATIONS + name, only_x, call=in_order)
        for name in ("sigmoid", "logsigmoid", "swish", "sqrelu", "fast_gelu_impl")
    ),
    fused(ACTIVATIONS + "bias_gelu_impl", biased, call=in_order),
    *(
        fused(ACTIVATIONS + name, pair, call=in_order)
        for name in ("swiglu", "sigmoidglu", "powglu")
    ),
    *(
        fused(
            f"{ACTIVATIONS}{name}_linear", pair_linear, arithmetic="products", kept=NONE,
            call=in_order,
        )
        for name in ("swiglu", "sigmoidglu", "powglu")
    ),
    fused("rotary.ops.rotary_embedding", rotation, layouts=("2x256", "ragged"), fixed=ANGLES),
    fused("rotary.ops.rotary_embedding", rotation_interleaved, "interleaved", fixed=ANGLES),
    fused("fused_cross_entropy.ops.cross_entropy_loss", cross_entropy),
    fused(
        "fused_linear_cross_entropy.ops.fused_linear_cross_entropy_loss", linear_cross_entropy,
        arithmetic="products", kept=NONE,
    ),
    fused(
        "fused_kl_div.ops.fused_kl_div_fwd", distillation, arithmetic="products", kept=NONE,
        forward_only="it returns the gradients",
    ),
    fused("grpo.ops.fused_grpo_loss", policy, fixed=frozenset({"ref_logp", "advantages"})),
    *(
        Case(
            f"ops.rwkv7.{path}", build, layouts=("2x256",), arithmetic="elementwise",
            kept=frozenset({"xr", "xw", "xk", "xv", "xa", "xg", "ka", "r_k"}),
        )
        for path, build in {
            "fused_addcmul.fused_addcmul_rwkv7": mixes,
            "fused_k_update.fused_k_rwkv7": rwkv7_keys,
            "gate_output_correction.gate_output_correction": rwkv7_outputs,
        }.items()
    ),
    Case(
        "ops.rwkv7.channel_mixing.channel_mixing_rwkv7", rwkv7_channels, layouts=("2x256",),
        arithmetic="products", kept=NONE,
    ),
    Case(
        "ops.attnres.fused.fused_attnres", depth, call=with_list_of_streams, layouts=("2x256",),
        arithmetic="elementwise", kept=frozenset({"query", "rms_weight", "output_rms_weight"}),
    ),
)  # fmt: skip
