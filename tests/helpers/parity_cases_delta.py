"""Inputs of the delta rule and its variants, for `parity`.

Queries and keys have length 1 where the rule needs it, strengths lie in (0, 1), decays below 1.
"""

from typing import Any

import torch
from torch import Tensor

from tests.helpers.parity import FIXED, Arguments, Case, Draw, Looser, narrow
from tests.helpers.parity_cases_recurrence import (
    HEADS,
    PAIR,
    WIDTH,
    Function,
    qkv_inputs,
    with_states,
)

SHARED, PERIOD = 4, 31
"""Heads of values where several share a key; turns of the slots."""


def delta_rule_inputs(d: Draw) -> Arguments:
    """Unit queries and keys, strengths in (0, 1)."""
    q, k, v = d.unit(HEADS, WIDTH), d.unit(HEADS, WIDTH), d.normal(HEADS, WIDTH)
    return with_states(d, {"q": q, "k": k, "v": v, "beta": d.unit_interval(HEADS)})


def unnormalized_delta_rule_inputs(d: Draw) -> Arguments:
    inputs = {**qkv_inputs(d), "beta": d.unit_interval(HEADS), "use_qk_l2norm_in_kernel": True}
    return with_states(d, inputs)


def gated_delta_rule_inputs(d: Draw) -> Arguments:
    return {**delta_rule_inputs(d), "g": d.log_decay(HEADS)}


def grouped_gated_delta_rule_inputs(d: Draw) -> Arguments:
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


def gated_delta_rule_gate_inputs(d: Draw) -> Arguments:
    """The decay computed inside from logits and two parameters."""
    parameters = {"A_log": d.parameter(HEADS), "dt_bias": d.parameter(HEADS)}
    return {**delta_rule_inputs(d), "g": d.normal(HEADS), **parameters, "use_gate_in_kernel": True}


def gated_delta_product_inputs(d: Draw) -> Arguments:
    rows, tokens = d.layout.rows, d.layout.tokens
    inputs = delta_rule_inputs(d)
    for name in ("k", "v", "beta"):
        later = delta_rule_inputs(d)[name]
        both = torch.stack((inputs[name], later), 2)
        inputs[name] = both.view(rows, 2 * tokens, *both.shape[3:])
    return {**inputs, "g": d.log_decay(HEADS), "num_householder": 2}


def kda_inputs(d: Draw) -> Arguments:
    return {**delta_rule_inputs(d), "g": d.log_decay(HEADS, WIDTH)}


def kda_with_gate_inputs(d: Draw) -> Arguments:
    """The decay and the strength computed inside."""
    parameters = {"A_log": d.parameter(HEADS), "dt_bias": d.parameter(HEADS * WIDTH)}
    options = {"use_gate_in_kernel": True, "use_qk_l2norm_in_kernel": True}
    return {**qkv_beta_inputs(d), "g": d.normal(HEADS, WIDTH), **parameters, **options}


def qkv_beta_inputs(d: Draw) -> Arguments:
    return with_states(d, {**qkv_inputs(d), "beta": d.unit_interval(HEADS)})


def kda_gate_inputs(d: Draw) -> Arguments:
    parameters = {"A_log": d.parameter(HEADS), "dt_bias": d.parameter(HEADS * WIDTH)}
    return {"g": d.normal(HEADS, WIDTH), **parameters}


def gdn2_inputs(d: Draw) -> Arguments:
    """Strengths per channel: of keys for what is erased, of values for what is written."""
    inputs = kda_inputs(d)
    del inputs["beta"]
    return {**inputs, "b": d.unit_interval(HEADS, WIDTH), "w": d.unit_interval(HEADS, WIDTH)}


def rwkv7_inputs(d: Draw) -> Arguments:
    """Decays between exp(-0.6) and 1, unit erase keys, as the layer makes them."""
    erase, share = d.unit(HEADS, WIDTH), d.unit_interval(HEADS, WIDTH)
    inputs = qkv_inputs(d)
    inputs["r"] = inputs.pop("q")
    decay = {"w": -0.6 * d.unit_interval(HEADS, WIDTH)}
    return with_states(d, {**inputs, **decay, "a": -erase, "b": erase * share})


def fused_mul_rwkv7_inputs(d: Draw) -> Arguments:
    inputs = rwkv7_inputs(d)
    del inputs["b"]
    return {**inputs, "kk": -inputs["a"], "a": d.unit_interval(HEADS, WIDTH)}


def dplr_inputs(d: Draw) -> Arguments:
    inputs = rwkv7_inputs(d)
    inputs["q"], inputs["gk"] = inputs.pop("r"), inputs.pop("w")
    return inputs


def iplr_inputs(d: Draw) -> Arguments:
    inputs = dplr_inputs(d)
    del inputs["gk"]
    return inputs


def comba_inputs(d: Draw) -> Arguments:
    inputs = gated_delta_rule_inputs(d)
    return {**inputs, "p": inputs["k"] * d.unit_interval(HEADS, 1)}


def oja_inputs(d: Draw) -> Arguments:
    inputs = {"q": d.normal(HEADS, WIDTH), "k": d.normal(HEADS, WIDTH), "v": d.unit(HEADS, WIDTH)}
    rule = {"gv": d.log_decay(HEADS, WIDTH), "beta": d.unit_interval(HEADS)}
    state = d.state(HEADS, WIDTH, WIDTH)
    return {**inputs, **rule, "initial_state": state, "output_final_state": True}


def ttt_inputs(d: Draw) -> Arguments:
    parameters = {name: d.parameter(HEADS, WIDTH) for name in ("w", "b")}
    return {
        "q": d.unit(HEADS, WIDTH),
        "k": d.unit(HEADS, WIDTH),
        "v": d.normal(HEADS, WIDTH),
        **parameters,
        "eta": 0.01 * d.unit_interval(HEADS, 1),
        "initial_state": 0.1 * d.state(HEADS, WIDTH, WIDTH),
        "initial_state_bias": 0.1 * d.state(HEADS, 1, WIDTH),
        "output_final_state": True,
    }


def gate_inputs(d: Draw) -> Arguments:
    return {"g": d.normal(HEADS), "A_log": d.parameter(HEADS), "dt_bias": d.parameter(HEADS)}


def mesa_inputs(d: Draw) -> Arguments:
    root = d.state(HEADS, WIDTH, WIDTH)
    return {
        "q": d.unit(HEADS, WIDTH),
        "k": d.unit(HEADS, WIDTH),
        "v": d.normal(HEADS, WIDTH),
        "g": d.log_decay(HEADS),
        "beta": d.unit_interval(HEADS),
        "lamb": 0.5 + torch.rand(HEADS, WIDTH, generator=d.generator),
        "h_kk_init": root @ root.mT / WIDTH,
        "h_kv_init": d.state(HEADS, WIDTH, WIDTH),
        "output_final_state": True,
    }


def with_symmetric_state(function: Function, inputs: Arguments) -> Any:
    # a symmetric matrix has a gradient up to an antisymmetric one
    h: Tensor = inputs.pop("h_kk_init")
    return function(**inputs, h_kk_init=(h + h.mT) / 2)


def mesa_decoding_inputs(d: Draw) -> Arguments:
    inputs = mesa_inputs(d)
    step: Arguments = {name: inputs[name][:, 0] for name in ("q", "k", "v", "g", "beta")}
    states = {"prev_h_kk": inputs["h_kk_init"], "prev_h_kv": inputs["h_kv_init"]}
    return {**step, "lamb": inputs["lamb"], **states}


def momentum_delta_rule_inputs(d: Draw) -> Arguments:
    """Gentle decays: fla's chunks compute 1 - exp(a difference of their sums), which cancels."""
    inputs = delta_rule_inputs(d)
    state = torch.stack((inputs.pop("initial_state"), d.state(HEADS, WIDTH, WIDTH)))
    decays = {"log_alpha": d.log_decay(HEADS) / 16, "log_mu": d.log_decay(HEADS) / 16}
    erased = {"p": d.unit(HEADS, WIDTH), "eta": d.unit_interval(HEADS)}
    return {**inputs, **decays, **erased, "initial_state": state, "use_qk_l2norm_in_kernel": False}


def preconditioned_delta_rule_inputs(d: Draw) -> Arguments:
    scaling = {
        "g_atk": d.log_decay(HEADS),
        "beta_atk": d.unit_interval(HEADS),
        "log_atk_scale": d.parameter(HEADS),
        "initial_A_state": d.state(HEADS, WIDTH).abs(),
    }
    return {**gated_delta_rule_inputs(d), **scaling}


def preconditioned_kda_inputs(d: Draw) -> Arguments:
    return {**preconditioned_delta_rule_inputs(d), "g": d.log_decay(HEADS, WIDTH)}


def cyfa_inputs(d: Draw) -> Arguments:
    slots = PERIOD + 1
    return {
        **qkv_inputs(d),
        "g": d.log_decay(HEADS),
        "delta": d.unit_interval(HEADS),
        "beta": d.unit_interval(HEADS),
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
TTT_BF16 = (
    Looser(
        "bf16", 4e-2,
        # 0.8% after 4 mini-batches of 16 tokens, 2.4% after 16 of them
        "gradients of the state are rounded after each mini-batch",
    ),
)  # fmt: skip
NO_BACKWARD = "NotImplementedError: no gradient of g without all states"

DELTA_RULES = (
    Case("ops.delta_rule.chunk.chunk_delta_rule", delta_rule_inputs, refusals=NO_FP32),
    Case("ops.gated_oja_rule.chunk.chunk_gated_oja_rule", oja_inputs),
    Case(
        "ops.gated_oja_rule.fused_recurrent.fused_recurrent_gated_oja_rule",
        oja_inputs,
        forward_only=NO_BACKWARD,
    ),
    # its kernels have no backward pass of packed documents
    Case("ops.ttt.chunk.chunk_ttt_linear", ttt_inputs, layouts=FIXED, looser=TTT_BF16),
    Case("ops.ttt.fused_chunk.fused_chunk_ttt_linear", ttt_inputs, layouts=FIXED, looser=TTT_BF16),
    Case(
        "ops.gated_delta_rule.gate.fused_gdn_gate",
        gate_inputs,
        arithmetic="elementwise",
        layouts=FIXED,
    ),
    Case(
        "ops.delta_rule.chunk.chunk_delta_rule",
        unnormalized_delta_rule_inputs,
        "l2norm",
        refusals=NO_FP32,
    ),
    Case("ops.delta_rule.fused_recurrent.fused_recurrent_delta_rule", delta_rule_inputs),
    Case("ops.gated_delta_rule.chunk.chunk_gated_delta_rule", gated_delta_rule_inputs),
    Case(
        "ops.gated_delta_rule.chunk.chunk_gated_delta_rule",
        grouped_gated_delta_rule_inputs,
        "shared keys",
    ),
    Case("ops.gated_delta_rule.chunk.chunk_gated_delta_rule", gated_delta_rule_gate_inputs, "gate"),
    Case(
        "ops.gated_delta_rule.fused_recurrent.fused_recurrent_gated_delta_rule",
        gated_delta_rule_inputs,
        forward_only=NO_BACKWARD,
    ),
    Case(
        "ops.gated_delta_product.chunk.chunk_gated_delta_product",
        gated_delta_product_inputs,
        refusals=NO_FP32,
    ),
    Case("ops.kda.chunk.chunk_kda", kda_inputs),
    Case("ops.kda.chunk.chunk_kda", kda_with_gate_inputs, "gate"),
    Case("ops.kda.fused_recurrent.fused_recurrent_kda", kda_inputs, forward_only=NO_BACKWARD),
    Case(
        "ops.kda.gate.fused_kda_gate", kda_gate_inputs, arithmetic="elementwise", layouts=("2x64",)
    ),
    Case("ops.gdn2.chunk.chunk_gdn2", gdn2_inputs),
    Case("ops.gdn2.fused_recurrent.fused_recurrent_gdn2", gdn2_inputs, forward_only=NO_BACKWARD),
    Case("ops.rwkv7.chunk.chunk_rwkv7", rwkv7_inputs),
    Case("ops.rwkv7.fused_recurrent.fused_recurrent_rwkv7", rwkv7_inputs, forward_only=NO_BACKWARD),
    Case(
        "ops.rwkv7.fused_recurrent.fused_mul_recurrent_rwkv7",
        fused_mul_rwkv7_inputs,
        forward_only=NO_BACKWARD,
    ),
    Case("ops.generalized_delta_rule.dplr.chunk.chunk_dplr_delta_rule", dplr_inputs),
    Case(
        "ops.generalized_delta_rule.dplr.fused_recurrent.fused_recurrent_dplr_delta_rule",
        dplr_inputs,
        forward_only=NO_BACKWARD,
    ),
    Case(
        "ops.generalized_delta_rule.iplr.chunk.chunk_iplr_delta_rule",
        iplr_inputs,
        forward_only=NO_BACKWARD,
    ),
    Case(
        "ops.generalized_delta_rule.iplr.fused_recurrent.fused_recurrent_iplr_delta_rule",
        iplr_inputs,
    ),
    Case("ops.comba.chunk.chunk_comba", comba_inputs),
    Case("ops.comba.fused_recurrent.fused_recurrent_comba", comba_inputs, forward_only=NO_BACKWARD),
    Case(
        "ops.mesa_net.chunk.chunk_mesa_net",
        mesa_inputs,
        call=with_symmetric_state,
        kept=frozenset({"lamb", "h_kk_init", "h_kv_init"}),
    ),
    Case(
        "ops.mesa_net.chunk.chunk_mesa_net",
        narrow(mesa_inputs),
        "narrow",
        call=with_symmetric_state,
        kept=frozenset({"lamb", "h_kk_init", "h_kv_init"}),
    ),
    Case(
        "ops.mesa_net.decoding_one_step.mesa_net_decoding_one_step",
        mesa_decoding_inputs,
        layouts=("2x64",),
        kept=frozenset({"lamb", "prev_h_kk", "prev_h_kv"}),
        forward_only="a step of generation",
    ),
    Case(
        "ops.momentum_delta_rule.chunk.chunk_momentum_delta_rule",
        momentum_delta_rule_inputs,
        layouts=FIXED,
        kept=frozenset({"log_alpha", "log_mu"}),
        refusals=NO_FP32,
    ),
    Case(
        "ops.momentum_delta_rule.fused_recurrent.fused_recurrent_momentum_delta_rule",
        momentum_delta_rule_inputs,
        layouts=FIXED,
        kept=frozenset({"log_alpha", "log_mu"}),
    ),
    *(
        Case(
            f"ops.{family}.{module}.{module}_{family}",
            build,
            kept=PRECONDITIONER,
            forward_only=NO_BACKWARD if module == "fused_recurrent" else "",
        )
        for family, build in {
            "precond_gated_delta_rule": preconditioned_delta_rule_inputs,
            "precond_kda": preconditioned_kda_inputs,
        }.items()
        for module in ("chunk", "fused_recurrent")
    ),
    *(
        Case(
            f"ops.cyfa.{module}.{module}_cyfa",
            cyfa_inputs,
            call=with_cyfa_state,
            kept=PAIR | {"h_phase", "delta"},
            forward_only="inference-only" if module == "fused_recurrent" else "",
        )
        for module in ("chunk", "fused_recurrent")
    ),
)
