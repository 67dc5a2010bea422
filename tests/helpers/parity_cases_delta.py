"""Inputs of the delta rule and of its kin for `test_gpu_kernels`.

Queries and keys have length 1 where the rule needs it, strengths lie in (0, 1), decays below 1.
"""

from typing import Any

import torch
from torch import Tensor

from tests.helpers.parity import FIXED, Arguments, Case, Draw, narrow
from tests.helpers.parity_cases_recurrence import (
    HEADS,
    PAIR,
    WIDTH,
    Function,
    attention,
    with_states,
)

SHARED, PERIOD = 4, 31
"""Heads of values where several share a key; turns of the slots."""


def delta(d: Draw) -> Arguments:
    """Unit queries and keys, strengths in (0, 1)."""
    q, k, v = d.unit(HEADS, WIDTH), d.unit(HEADS, WIDTH), d.normal(HEADS, WIDTH)
    return with_states(d, {"q": q, "k": k, "v": v, "beta": d.share(HEADS)})


def delta_normalizing(d: Draw) -> Arguments:
    inputs = {**attention(d), "beta": d.share(HEADS), "use_qk_l2norm_in_kernel": True}
    return with_states(d, inputs)


def gated_delta(d: Draw) -> Arguments:
    return {**delta(d), "g": d.log_decay(HEADS)}


def gated_delta_sharing(d: Draw) -> Arguments:
    """Several heads of values to one of keys; logits for strengths, of either sign."""
    inputs = {
        "q": d.normal(HEADS, WIDTH),
        "k": d.normal(HEADS, WIDTH),
        "v": d.normal(SHARED, WIDTH),
        "g": d.log_decay(SHARED),
        "beta": d.normal(SHARED),
    }
    options = {
        "use_qk_l2norm_in_kernel": True,
        "use_beta_sigmoid_in_kernel": True,
        "allow_neg_eigval": True,
        "state_v_first": True,
    }
    return with_states(d, {**inputs, **options}, SHARED)


def gated_delta_gate(d: Draw) -> Arguments:
    """The decay computed inside from logits and two parameters."""
    parameters = {"A_log": d.parameter(HEADS), "dt_bias": d.parameter(HEADS)}
    return {**delta(d), "g": d.normal(HEADS), **parameters, "use_gate_in_kernel": True}


def delta_product(d: Draw) -> Arguments:
    rows, tokens = d.layout.rows, d.layout.tokens
    inputs = delta(d)
    for name in ("k", "v", "beta"):
        later = delta(d)[name]
        both = torch.stack((inputs[name], later), 2)
        inputs[name] = both.view(rows, 2 * tokens, *both.shape[3:])
    return {**inputs, "g": d.log_decay(HEADS), "num_householder": 2}


def kda(d: Draw) -> Arguments:
    return {**delta(d), "g": d.log_decay(HEADS, WIDTH)}


def kda_gate(d: Draw) -> Arguments:
    """The decay and the strength computed inside."""
    parameters = {"A_log": d.parameter(HEADS), "dt_bias": d.parameter(HEADS * WIDTH)}
    options = {"use_gate_in_kernel": True, "use_qk_l2norm_in_kernel": True}
    return {**attention_with_strength(d), "g": d.normal(HEADS, WIDTH), **parameters, **options}


def attention_with_strength(d: Draw) -> Arguments:
    return with_states(d, {**attention(d), "beta": d.share(HEADS)})


def kda_decay(d: Draw) -> Arguments:
    parameters = {"A_log": d.parameter(HEADS), "dt_bias": d.parameter(HEADS * WIDTH)}
    return {"g": d.normal(HEADS, WIDTH), **parameters}


def gdn2(d: Draw) -> Arguments:
    """Strengths per channel: of keys for what is erased, of values for what is written."""
    inputs = kda(d)
    del inputs["beta"]
    return {**inputs, "b": d.share(HEADS, WIDTH), "w": d.share(HEADS, WIDTH)}


def rwkv7(d: Draw) -> Arguments:
    """Decays between exp(-0.6) and 1, unit erase keys, as the layer makes them."""
    erase, share = d.unit(HEADS, WIDTH), d.share(HEADS, WIDTH)
    inputs = attention(d)
    inputs["r"] = inputs.pop("q")
    decay = {"w": -0.6 * d.share(HEADS, WIDTH)}
    return with_states(d, {**inputs, **decay, "a": -erase, "b": erase * share})


def rwkv7_multiplying(d: Draw) -> Arguments:
    inputs = rwkv7(d)
    del inputs["b"]
    return {**inputs, "kk": -inputs["a"], "a": d.share(HEADS, WIDTH)}


def dplr(d: Draw) -> Arguments:
    inputs = rwkv7(d)
    inputs["q"], inputs["gk"] = inputs.pop("r"), inputs.pop("w")
    return inputs


def iplr(d: Draw) -> Arguments:
    inputs = dplr(d)
    del inputs["gk"]
    return inputs


def comba(d: Draw) -> Arguments:
    inputs = gated_delta(d)
    return {**inputs, "p": inputs["k"] * d.share(HEADS, 1)}


def mesa(d: Draw) -> Arguments:
    root = d.state(HEADS, WIDTH, WIDTH)
    return {
        "q": d.unit(HEADS, WIDTH),
        "k": d.unit(HEADS, WIDTH),
        "v": d.normal(HEADS, WIDTH),
        "g": d.log_decay(HEADS),
        "beta": d.share(HEADS),
        "lamb": 0.5 + torch.rand(HEADS, WIDTH, generator=d.generator),
        "h_kk_init": root @ root.mT / WIDTH,
        "h_kv_init": d.state(HEADS, WIDTH, WIDTH),
        "output_final_state": True,
    }


def with_symmetric_state(function: Function, inputs: Arguments) -> Any:
    # a symmetric matrix has a gradient up to an antisymmetric one
    h: Tensor = inputs.pop("h_kk_init")
    return function(**inputs, h_kk_init=(h + h.mT) / 2)


def mesa_step(d: Draw) -> Arguments:
    inputs = mesa(d)
    step: Arguments = {name: inputs[name][:, 0] for name in ("q", "k", "v", "g", "beta")}
    states = {"prev_h_kk": inputs["h_kk_init"], "prev_h_kv": inputs["h_kv_init"]}
    return {**step, "lamb": inputs["lamb"], **states}


def momentum(d: Draw) -> Arguments:
    """Gentle decays: fla's chunks compute 1 - exp(a difference of their sums), which cancels."""
    inputs = delta(d)
    state = torch.stack((inputs.pop("initial_state"), d.state(HEADS, WIDTH, WIDTH)))
    decays = {"log_alpha": d.log_decay(HEADS) / 16, "log_mu": d.log_decay(HEADS) / 16}
    erased = {"p": d.unit(HEADS, WIDTH), "eta": d.share(HEADS)}
    return {**inputs, **decays, **erased, "initial_state": state, "use_qk_l2norm_in_kernel": False}


def preconditioned(d: Draw) -> Arguments:
    scaling = {
        "g_atk": d.log_decay(HEADS),
        "beta_atk": d.share(HEADS),
        "log_atk_scale": d.parameter(HEADS),
        "initial_A_state": d.state(HEADS, WIDTH).abs(),
    }
    return {**gated_delta(d), **scaling}


def preconditioned_kda(d: Draw) -> Arguments:
    return {**preconditioned(d), "g": d.log_decay(HEADS, WIDTH)}


def cyfa(d: Draw) -> Arguments:
    slots = PERIOD + 1
    return {
        **attention(d),
        "g": d.log_decay(HEADS),
        "delta": d.share(HEADS),
        "beta": d.share(HEADS),
        "readout": d.parameter(HEADS, PERIOD, PERIOD) / PERIOD**0.5,
        "q_norm_weight": d.parameter(WIDTH).sigmoid() + 0.5,
        "k_norm_weight": d.parameter(WIDTH).sigmoid() + 0.5,
        "q_norm_eps": 1e-5,
        "k_norm_eps": 1e-5,
        "h_k": d.state(HEADS, WIDTH, slots),
        "h_v": d.state(HEADS, slots, WIDTH),
        "h_phase": 9 * torch.rand(d.layout.sequences, HEADS, generator=d.generator),
        "output_final_state": True,
    }


def with_cyfa_state(function: Function, inputs: Arguments) -> Any:
    state = tuple(inputs.pop(name) for name in ("h_k", "h_v", "h_phase"))
    return function(**inputs, initial_state=state)


PRECONDITIONER = frozenset({"g_atk", "log_atk_scale", "initial_A_state"})
NO_FP32 = {"fp32": "does not support float32"}
NO_BACKWARD = "NotImplementedError: no gradient of g without all states"

DELTA_RULES = (
    Case("ops.delta_rule.chunk.chunk_delta_rule", delta, refusals=NO_FP32),
    Case(
        "ops.delta_rule.chunk.chunk_delta_rule", delta_normalizing, "l2norm", refusals=NO_FP32
    ),
    Case("ops.delta_rule.fused_recurrent.fused_recurrent_delta_rule", delta),
    Case("ops.gated_delta_rule.chunk.chunk_gated_delta_rule", gated_delta),
    Case("ops.gated_delta_rule.chunk.chunk_gated_delta_rule", gated_delta_sharing, "shared keys"),
    Case("ops.gated_delta_rule.chunk.chunk_gated_delta_rule", gated_delta_gate, "gate"),
    Case(
        "ops.gated_delta_rule.fused_recurrent.fused_recurrent_gated_delta_rule",
        gated_delta,
        forward_only=NO_BACKWARD,
    ),
    Case(
        "ops.gated_delta_product.chunk.chunk_gated_delta_product", delta_product,
        refusals=NO_FP32,
    ),
    Case("ops.kda.chunk.chunk_kda", kda),
    Case("ops.kda.chunk.chunk_kda", kda_gate, "gate"),
    Case("ops.kda.fused_recurrent.fused_recurrent_kda", kda, forward_only=NO_BACKWARD),
    Case("ops.kda.gate.fused_kda_gate", kda_decay, arithmetic="elementwise", layouts=("2x64",)),
    Case("ops.gdn2.chunk.chunk_gdn2", gdn2),
    Case("ops.gdn2.fused_recurrent.fused_recurrent_gdn2", gdn2, forward_only=NO_BACKWARD),
    Case("ops.rwkv7.chunk.chunk_rwkv7", rwkv7),
    Case(
        "ops.rwkv7.fused_recurrent.fused_recurrent_rwkv7", rwkv7, forward_only=NO_BACKWARD
    ),
    Case(
        "ops.rwkv7.fused_recurrent.fused_mul_recurrent_rwkv7", rwkv7_multiplying,
        forward_only=NO_BACKWARD,
    ),
    Case("ops.generalized_delta_rule.dplr.chunk.chunk_dplr_delta_rule", dplr),
    Case(
        "ops.generalized_delta_rule.dplr.fused_recurrent.fused_recurrent_dplr_delta_rule", dplr,
        forward_only=NO_BACKWARD,
    ),
    Case(
        "ops.generalized_delta_rule.iplr.chunk.chunk_iplr_delta_rule", iplr,
        forward_only=NO_BACKWARD,
    ),
    Case("ops.generalized_delta_rule.iplr.fused_recurrent.fused_recurrent_iplr_delta_rule", iplr),
    Case("ops.comba.chunk.chunk_comba", comba),
    Case("ops.comba.fused_recurrent.fused_recurrent_comba", comba, forward_only=NO_BACKWARD),
    Case(
        "ops.mesa_net.chunk.chunk_mesa_net", mesa, call=with_symmetric_state,
        kept=frozenset({"lamb", "h_kk_init", "h_kv_init"}),
    ),
    Case(
        "ops.mesa_net.chunk.chunk_mesa_net", narrow(mesa), "narrow", call=with_symmetric_state,
        kept=frozenset({"lamb", "h_kk_init", "h_kv_init"}),
    ),
    Case(
        "ops.mesa_net.decoding_one_step.mesa_net_decoding_one_step", mesa_step, layouts=("2x64",),
        kept=frozenset({"lamb", "prev_h_kk", "prev_h_kv"}), forward_only="a step of generation",
    ),
    Case(
        "ops.momentum_delta_rule.chunk.chunk_momentum_delta_rule", momentum, layouts=FIXED,
        kept=frozenset({"log_alpha", "log_mu"}), refusals=NO_FP32,
    ),
    Case(
        "ops.momentum_delta_rule.fused_recurrent.fused_recurrent_momentum_delta_rule", momentum,
        layouts=FIXED, kept=frozenset({"log_alpha", "log_mu"}),
    ),
    *(
        Case(
            f"ops.{family}.{module}.{module}_{family}", build, kept=PRECONDITIONER,
            forward_only=NO_BACKWARD if module == "fused_recurrent" else "",
        )
        for family, build in {
            "precond_gated_delta_rule": preconditioned, "precond_kda": preconditioned_kda
        }.items()
        for module in ("chunk", "fused_recurrent")
    ),
    *(
        Case(
            f"ops.cyfa.{module}.{module}_cyfa", cyfa, call=with_cyfa_state,
            kept=PAIR | {"h_phase", "delta"},
            forward_only="inference-only" if module == "fused_recurrent" else "",
        )
        for module in ("chunk", "fused_recurrent")
    ),
)  # fmt: skip
