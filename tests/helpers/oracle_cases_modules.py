"""Norms, convolutions and elementwise functions, and their references, for `oracle`.

fla's own `*_ref` functions where it has them; PyTorch's operators elsewhere.
"""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from fla.modules.norm.layernorm import group_norm_ref, layer_norm_ref, rms_norm_ref
from fla.modules.norm.layernorm_gated import rms_norm_ref as gated_rms_norm_ref
from fla.modules.rotary.ops import rotary_embedding_ref
from fla.ops.attnres.naive import naive_attnres
from fla.ops.rwkv7.channel_mixing import channel_mixing_rwkv7_torch
from fla.ops.rwkv7.fused_addcmul import torch_addcmul_rwkv7
from fla.ops.rwkv7.fused_k_update import k_update_ref
from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref
from fla.ops.utils.sinkhorn.naive import naive_sinkhorn
from torch import Tensor

from tests.helpers.oracle import OracleCase, Result
from tests.helpers.parity import Arguments

Function = Callable[..., Any]
WIDTHS = (4, 8, 16)


def elementwise(function: Function, *names: str) -> Callable[[Arguments], Result]:
    """A reference that takes these arguments in order and returns tensors of tokens."""

    def run(a: Arguments) -> Result:
        found = function(*(a[name] for name in names))
        return Result([found] if isinstance(found, Tensor) else [x for x in found if x is not None])

    return run


def in_order(function: Function, a: Arguments) -> Any:
    """For fla's activations, whose arguments have no names."""
    return function(*a.values())


def norm(a: Arguments) -> Result:
    options = {name: a[name] for name in ("residual", "eps", "prenorm")}
    if a.get("num_groups", 1) > 1:
        options |= {"num_groups": a["num_groups"], "is_rms_norm": a["is_rms_norm"]}
        found = group_norm_ref(a["x"], a["weight"], a["bias"], **options)
    else:
        reference = rms_norm_ref if a.get("is_rms_norm", True) else layer_norm_ref
        found = reference(a["x"], a["weight"], a["bias"], **options)
    return Result([*found] if a["prenorm"] else [found])


def layer_norm(a: Arguments) -> Result:
    return norm({**a, "is_rms_norm": a.get("is_rms_norm", False)})


def gated_norm(reference: Function) -> Callable[[Arguments], Result]:
    def run(a: Arguments) -> Result:
        y, x = reference(a["x"], a["weight"], a["bias"], a["residual"], a["eps"], prenorm=True)
        y = y * (a["g"].sigmoid() if a["activation"] == "sigmoid" else F.silu(a["g"]))
        return Result([y, x] if a["prenorm"] else [y])

    return run


def mamba_norm(a: Arguments) -> Result:
    names = ("x", "weight", "bias", "z", "eps", "group_size", "norm_before_gate")
    return Result([gated_rms_norm_ref(*(a[name] for name in names))])


def l2norm(a: Arguments) -> Result:
    return Result([a["x"] * (a["x"].square().sum(-1, keepdim=True) + a["eps"]).rsqrt()])


def convolution(a: Arguments) -> Result:
    x, width = a["x"], a["weight"].shape[-1]
    inputs = torch.cat((a["initial_state"].mT, x), 1)
    weight = a["weight"].unsqueeze(1)
    y = F.conv1d(inputs.mT, weight, a["bias"], groups=x.shape[-1])[..., 1:].mT
    y = F.silu(y) if a["activation"] else y
    y = y if a["residual"] is None else y + a["residual"]
    return Result([y], [inputs[:, -width:].mT])


def token_shift(a: Arguments) -> Result:
    before = torch.cat((a["cache"].unsqueeze(1), a["x"][:, :-1]), 1)
    return Result([before - a["x"]], [a["x"][:, -1]])


def rotary(a: Arguments) -> Result:
    here = slice(a["seqlen_offsets"], a["seqlen_offsets"] + a["x"].shape[1])
    o = rotary_embedding_ref(a["x"], a["cos"][here], a["sin"][here], a["interleaved"])
    return Result([o])


def attention_residuals(a: Arguments) -> Result:
    streams = [a[f"residual{index}"] for index in range(3)]
    names = ("query", "rms_weight", "output_rms_weight", "rms_eps", "scale", "return_weights")
    query, *rest = (a[name] for name in names)
    found = naive_attnres(query, streams, *rest)
    return Result([found[0], found[1].movedim(0, 2)] if a["return_weights"] else [found])


def with_list_of_streams(function: Function, a: Arguments) -> Any:
    found = function(residuals=[a.pop(f"residual{index}") for index in range(3)], **a)
    return (found[0], found[1].movedim(0, 2)) if isinstance(found, tuple) else found


PARAMETERS = frozenset({"weight", "bias"})
EPS = {"eps": st.sampled_from((1e-5, 1e-2))}
NORM = {**EPS, "prenorm": st.booleans(), "residual_in_fp32": st.booleans()}
MIXES = ("xr", "xw", "xk", "xv", "xa", "xg")
CHANNEL_MIXING = ("x", "x_prev", "x_k", "key_weight", "value_weight")
LAYER_NORM = "modules.norm.layernorm"

MODULE_CASES = (
    *(
        OracleCase(
            f"{LAYER_NORM}.{name}", reference, "fla", shapes="x residual=BTD weight bias=D",
            options=NORM | options, kept=PARAMETERS, widths=WIDTHS, states=(),
        )
        for name, reference, options in (
            ("layer_norm", layer_norm, {"is_rms_norm": st.booleans()}),
            ("rms_norm", norm, {}),
            (
                "group_norm", layer_norm,
                {"is_rms_norm": st.booleans(), "num_groups": st.sampled_from((1, 2))},
            ),
        )
    ),
    *(
        OracleCase(
            f"modules.norm.fused_norm_gate.{name}_gated", gated_norm(reference), "fla, then a gate",
            shapes="x g residual=BTD weight bias=D", kinds={"g": "normal"},
            options={**NORM, "activation": st.sampled_from(("swish", "silu", "sigmoid"))},
            kept=PARAMETERS, widths=WIDTHS, states=(),
        )
        for name, reference in (("layer_norm", layer_norm_ref), ("rms_norm", rms_norm_ref))
    ),
    OracleCase(
        "modules.norm.layernorm_gated.rmsnorm_fn", mamba_norm, "fla",
        shapes="x z=BTD weight bias=D",
        options={
            **EPS, "group_size": st.sampled_from((None, 2)), "norm_before_gate": st.booleans(),
        },
        kept=PARAMETERS, widths=WIDTHS, states=(),
    ),
    OracleCase(
        "modules.norm.l2norm.l2norm", l2norm, "its formula", shapes="x=BTHK",
        options={**EPS, "output_dtype": st.just(torch.float32)}, states=(),
    ),
    OracleCase(
        "modules.causal_conv1d.ops.causal_conv1d", convolution, "torch.nn.functional.conv1d",
        shapes="x residual=BTD weight=DW bias=D initial_state=NDW",
        options={
            "activation": st.sampled_from((None, "silu", "swish")),
            "backend": st.just("triton"),
        },
        needed=frozenset({"weight"}), kept=PARAMETERS, widths=(1, 2, 4, 8),
        refused=frozenset({"cp_context"}),
    ),
    OracleCase(
        "modules.token_shift.token_shift", token_shift, "its formula", shapes="x=BTD cache=ND",
        options={"output_cache": st.booleans()}, states=("cache",), states_option="output_cache",
    ),
    OracleCase(
        "modules.rotary.ops.rotary_embedding", rotary, "fla", shapes="x=BTHK cos sin=ZR",
        options={
            "interleaved": st.booleans(), "seqlen_offsets": st.sampled_from((0, 2)),
            "inplace": st.just(False),
        },
        fixed=frozenset({"cos", "sin"}), widths=(16,), states=(),
    ),
    OracleCase(
        "ops.rwkv7.fused_addcmul.fused_addcmul_rwkv7",
        elementwise(torch_addcmul_rwkv7, "hidden_states", "delta", *MIXES), "fla",
        shapes="hidden_states delta=BTD xr xw xk xv xa xg=11D", kinds={"delta": "normal"},
        kept=frozenset(MIXES), states=(),
    ),
    OracleCase(
        "ops.rwkv7.channel_mixing.channel_mixing_rwkv7",
        elementwise(channel_mixing_rwkv7_torch, *CHANNEL_MIXING), "fla",
        shapes="x=BTD x_prev=BD x_k=11D key_weight=DF value_weight=FD",
        options={"inplace": st.just(False)}, states=(), widths=(4, 7, 16),
    ),
    OracleCase(
        "ops.rwkv7.fused_k_update.fused_k_rwkv7", elementwise(k_update_ref, "k", "a", "ka"), "fla",
        shapes="k a=BTD ka=D", kept=frozenset({"ka"}), states=(),
    ),
    OracleCase(
        "ops.rwkv7.gate_output_correction.gate_output_correction",
        elementwise(gate_output_correction_ref, "o", "r", "k", "r_k", "v", "g"), "fla",
        shapes="o g=BTY r k v=BTHK r_k=HK", kinds={"g": "normal"}, kept=frozenset({"r_k"}),
        states=(),
    ),
    OracleCase(
        "ops.attnres.fused.fused_attnres", attention_residuals, "fla",
        shapes="residual0 residual1 residual2=BTD query rms_weight output_rms_weight=D",
        options={
            "rms_eps": st.sampled_from((1e-6, 1e-2)), "scale": st.sampled_from((1.0, 0.3)),
            "return_weights": st.booleans(),
        },
        call=with_list_of_streams, states=(), widths=WIDTHS,
        needed=frozenset({"residual0", "residual1", "residual2"}),
        kept=frozenset({"query", "rms_weight", "output_rms_weight"}),
    ),
    OracleCase(
        "ops.utils.sinkhorn.ops.sinkhorn", elementwise(naive_sinkhorn, "logits", "num_iters"),
        "fla", shapes="logits=BTPP", options={"num_iters": st.sampled_from((1, 5, 20))}, states=(),
    ),
)  # fmt: skip
