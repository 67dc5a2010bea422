"""Inputs of linear attention and other recurrences without a delta rule, for `parity`.

Decays are those of fla's layers, below 1.
"""

from collections.abc import Callable
from typing import Any

import torch

from tests.helpers.parity import FIXED, Arguments, Case, Draw

HEADS, WIDTH, SLOTS = 2, 64, 32
"""Heads, channels of a head, slots of a head."""

Function = Callable[..., Any]


def qkv_inputs(d: Draw, heads: int = HEADS) -> Arguments:
    """Free queries, keys and values."""
    q, k, v = (d.normal(heads, WIDTH) for _ in range(3))
    return {"q": q, "k": k, "v": v}


def with_states(d: Draw, inputs: Arguments, heads: int = HEADS) -> Arguments:
    state = d.state(heads, WIDTH, WIDTH)
    return {**inputs, "initial_state": state, "output_final_state": True}


def with_constant_states(function: Function, inputs: Arguments) -> Any:
    """For an operator of fla that takes no gradient of final states."""
    o, *states = function(**inputs)
    return o, *(state.detach() for state in states)


def gla_inputs(d: Draw) -> Arguments:
    return with_states(d, {**qkv_inputs(d), "g": d.log_decay(HEADS, WIDTH)})


def recurrent_gla_inputs(d: Draw) -> Arguments:
    return with_states(d, {**qkv_inputs(d), "gk": d.log_decay(HEADS, WIDTH)})


def value_decay_gla_inputs(d: Draw) -> Arguments:
    return with_states(d, {**qkv_inputs(d), "gv": d.log_decay(HEADS, WIDTH)})


def simple_gla_inputs(d: Draw) -> Arguments:
    return with_states(d, {**qkv_inputs(d), "g": d.log_decay(HEADS)})


def retention_inputs(d: Draw) -> Arguments:
    gamma = (1 - 2.0 ** (-5 - torch.arange(HEADS))).log()
    return with_states(d, {**qkv_inputs(d), "g_gamma": gamma})


def linear_attention_inputs(d: Draw) -> Arguments:
    return with_states(d, qkv_inputs(d))


def parallel_simple_gla_inputs(d: Draw) -> Arguments:
    return {**qkv_inputs(d), "g": d.log_decay(HEADS)}


def state_v_first(build: Callable[[Draw], Arguments]) -> Callable[[Draw], Arguments]:
    return lambda d: {**build(d), "state_v_first": True}


def reverse(build: Callable[[Draw], Arguments]) -> Callable[[Draw], Arguments]:
    return lambda d: {**build(d), "reverse": True}


def cumsum_inputs(d: Draw) -> Arguments:
    return {"s": d.log_decay(HEADS, WIDTH)}


def hgrn_inputs(d: Draw) -> Arguments:
    state = d.state(HEADS * WIDTH)
    return {
        "x": d.normal(HEADS * WIDTH),
        "g": d.log_decay(HEADS * WIDTH),
        "initial_state": state,
        "output_final_state": True,
    }


def gsa_inputs(d: Draw) -> Arguments:
    states = {"h_k": d.state(HEADS, WIDTH, SLOTS), "h_v": d.state(HEADS, SLOTS, WIDTH)}
    slots = {"s": d.normal(HEADS, SLOTS), "g": d.log_decay(HEADS, SLOTS)}
    return {**qkv_inputs(d), **slots, **states, "output_final_state": True}


def with_pair_of_states(function: Function, inputs: Arguments) -> Any:
    return function(initial_state=(inputs.pop("h_k"), inputs.pop("h_v")), **inputs)


def additive_gate_inputs(d: Draw) -> Arguments:
    return {"x": d.normal(HEADS, SLOTS), "initial_state": d.state(1, HEADS, SLOTS)}


def rwkv6_inputs(d: Draw) -> Arguments:
    inputs = qkv_inputs(d)
    inputs["r"] = inputs.pop("q")
    decay = {"w": d.log_decay(HEADS, WIDTH), "u": d.parameter(HEADS, WIDTH)}
    return with_states(d, {**inputs, **decay})


def based_inputs(d: Draw) -> Arguments:
    q, k = d.normal(HEADS, 16), d.normal(HEADS, 16)
    return {"q": q, "k": k, "v": d.normal(HEADS, WIDTH)}


def log_linear_inputs(d: Draw) -> Arguments:
    levels = 10
    # in fp32 as fla's layer computes them, whatever the rest is in
    weights = {"g": d.log_decay(HEADS), "level_scales": d.unit_interval(HEADS, levels).float()}
    return {**qkv_inputs(d), **weights}


PAIR = frozenset({"h_k", "h_v"})
GAMMA = frozenset({"g_gamma"})

RECURRENCES = (
    Case("ops.gla.chunk.chunk_gla", gla_inputs),
    Case(
        "ops.gla.chunk.chunk_gla", state_v_first(gla_inputs), "state_v_first", layouts=("ragged",)
    ),
    Case("ops.gla.fused_recurrent.fused_recurrent_gla", recurrent_gla_inputs),
    Case("ops.gla.fused_recurrent.fused_recurrent_gla", value_decay_gla_inputs, "gv"),
    Case(
        "ops.gla.fused_recurrent.fused_recurrent_gla",
        reverse(recurrent_gla_inputs),
        "reverse",
        layouts=("ragged",),
    ),
    Case("ops.simple_gla.chunk.chunk_simple_gla", simple_gla_inputs),
    Case("ops.simple_gla.chunk.chunk_simple_gla", retention_inputs, "g_gamma", fixed=GAMMA),
    Case("ops.simple_gla.chunk.chunk_simple_gla", linear_attention_inputs, "no decay"),
    Case("ops.simple_gla.fused_chunk.fused_chunk_simple_gla", simple_gla_inputs),
    Case(
        "ops.simple_gla.fused_chunk.fused_chunk_simple_gla",
        retention_inputs,
        "g_gamma",
        fixed=GAMMA,
    ),
    Case("ops.simple_gla.fused_recurrent.fused_recurrent_simple_gla", simple_gla_inputs),
    Case("ops.simple_gla.parallel.parallel_simple_gla", parallel_simple_gla_inputs),
    Case(
        "ops.utils.cumsum.chunk_global_cumsum",
        cumsum_inputs,
        arithmetic="elementwise",
        forward_only="fla's kernel knows no autograd",
    ),
    Case(
        "ops.hgrn.chunk.chunk_hgrn",
        hgrn_inputs,
        layouts=FIXED,
        arithmetic="elementwise",
        call=with_constant_states,
        fixed=frozenset({"initial_state"}),
    ),
    Case("ops.hgrn.fused_recurrent.fused_recurrent_hgrn", hgrn_inputs, arithmetic="elementwise"),
    Case("ops.gsa.chunk.chunk_gsa", gsa_inputs, call=with_pair_of_states, kept=PAIR),
    Case(
        "ops.gsa.fused_recurrent.fused_recurrent_gsa",
        gsa_inputs,
        call=with_pair_of_states,
        kept=PAIR,
    ),
    Case("ops.gsa.gate.fused_additive_gate", additive_gate_inputs, arithmetic="elementwise"),
    Case("ops.rwkv6.chunk.chunk_rwkv6", rwkv6_inputs, kept=frozenset({"w"})),
    Case(
        "ops.rwkv6.fused_recurrent.fused_recurrent_rwkv6",
        rwkv6_inputs,
        kept=frozenset({"w"}),
        call=with_constant_states,
    ),
    Case("ops.based.parallel.parallel_based", based_inputs, layouts=FIXED),
    Case("ops.based.fused_chunk.fused_chunk_based", based_inputs, layouts=FIXED),
    Case("ops.rebased.parallel.parallel_rebased", based_inputs, layouts=FIXED),
    Case("ops.log_linear_attn.chunk.chunk_log_linear_attn", log_linear_inputs),
)
