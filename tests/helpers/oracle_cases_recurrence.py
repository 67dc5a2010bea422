"""Recurrent operators and their references, for `oracle`.

Those without a reference in fla have a recurrence of ours token by token, in fp64. Where fla's
reference is not what its kernels compute, the note says what is taken instead.
"""

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import torch

from tests.helpers import oracle_references as r
from tests.helpers.oracle import OracleCase, Plan
from tests.helpers.parity import Arguments

Function = Callable[..., Any]
UNIT_KEYS = {"q": "unit", "k": "unit"}
PAIR = frozenset({"h_k", "h_v"})
OURS = "token by token, ours"


def with_pair_of_states(function: Function, a: Arguments) -> Any:
    """States h_k and h_v, and what follows them, are one argument."""
    names = [name for name in ("h_k", "h_v", "z", "h_phase") if name in a]
    states = tuple(a.pop(name) for name in names)
    return function(**a, initial_state=states or None)


def with_sums_of_keys(function: Function, a: Arguments) -> Any:
    """Normalised linear attention continues a state and a sum of keys."""
    past = tuple(a.pop(name) for name in ("h_kv", "z") if name in a)
    if past:
        a["initial_state"] = past if a["normalize"] else past[0]
    return function(**a)


def sums_if_normalized(plan: Plan) -> None:
    if plan.setdefault("normalize", True):
        plan["output_final_state"] = True
    else:
        plan.pop("z", None)


def one_decay(plan: Plan) -> None:
    """fla takes a decay per head and one for all tokens, not both."""
    if "g" in plan:
        plan.pop("g_gamma", None)


def keys_or_values_decay(plan: Plan) -> None:
    """We refuse both."""
    if "gk" in plan:
        plan.pop("gv", None)


def scores_of_rows(plan: Plan) -> None:
    """We refuse those of packed documents."""
    if "cu_seqlens" in plan:
        plan.pop("output_attentions", None)


def neg_eigval_of_logits(plan: Plan) -> None:
    if plan.get("use_beta_sigmoid_in_kernel"):
        plan["beta"] = "normal"
    else:
        plan.pop("allow_neg_eigval", None)


def decay_from_logits(plan: Plan) -> None:
    """Parameters of a gate are given where it is computed inside."""
    if plan.get("use_gate_in_kernel"):
        plan["g"], plan["A_log"] = "normal", "small"
        if plan.get("lower_bound") is None:
            plan.pop("safe_gate", None)
    else:
        for name in ("A_log", "dt_bias", "lower_bound", "safe_gate"):
            plan.pop(name, None)


def gated_rules(plan: Plan) -> None:
    neg_eigval_of_logits(plan)
    decay_from_logits(plan)
    # a decay per channel has no gate, and no parameters either
    if "g" not in plan:
        plan.pop("use_gate_in_kernel", None)
        decay_from_logits(plan)
    if "beta" not in plan or plan["beta"] is None:
        for name in ("use_beta_sigmoid_in_kernel", "allow_neg_eigval"):
            plan.pop(name, None)


def kda_rules(plan: Plan) -> None:
    neg_eigval_of_logits(plan)
    decay_from_logits(plan)


def with_rate_or_bound(plan: Plan) -> None:
    if plan.get("lower_bound") is None:
        plan["A_log"] = "small"


def rwkv4_state(function: Function, a: Arguments) -> Any:
    """The state as sums, whatever the exponent that they are stored with."""
    o, state = function(**a)
    alpha, beta, largest = state.squeeze(2).unbind(1)
    return o, alpha * largest.exp(), beta * largest.exp()


LOWER_BOUND = {"lower_bound": st.sampled_from((None, -5.0, -2.0))}
PRECONDITIONER = frozenset({"g_atk", "log_atk_scale", "initial_A_state"})
KDA_GATE = {**LOWER_BOUND, "use_gate_in_kernel": st.booleans()}
MASSES = {"x": st.sampled_from((1.5, 2.0)), "eps": st.sampled_from((1e-6, 1e-3))}

DECAYED_STATES = "q k=BTHK v=BTHV g=BTH g_gamma=H initial_state=NHKV"
SLOT_STATES = "q=BTHK k=BTGK v=BTGV s g=BTGM h_k=NGKM h_v=NGMV"

RECURRENCE_CASES = (
    OracleCase("ops.gla.chunk.chunk_gla", r.gla, "fla"),
    OracleCase(
        "ops.gla.fused_recurrent.fused_recurrent_gla", r.gla, "fla; with gv token by token, ours",
        rules=keys_or_values_decay,
    ),
    *(
        OracleCase(
            f"ops.simple_gla.{module}.{module}_simple_gla", r.simple_gla, "fla",
            rules=one_decay, fixed=frozenset({"g_gamma"}),
        )
        for module in ("chunk", "fused_chunk", "fused_recurrent")
    ),
    OracleCase(
        "ops.simple_gla.parallel.parallel_simple_gla", r.parallel_simple_gla, "fla", states=(),
        rules=scores_of_rows,
    ),
    *(
        OracleCase(
            f"ops.linear_attn.{module}.{module}_linear_attn", r.linear_attention, "fla",
            shapes="q k=BTHK v=BTHV h_kv=NHKV z=N1HK",
            kinds=dict.fromkeys(("q", "k", "z"), "positive"),
            options={"normalize": st.booleans()}, rules=sums_if_normalized,
            call=with_sums_of_keys, together=(("h_kv", "z"),), states=("h_kv", "z"),
            kept=frozenset({"h_kv", "z"}), dtypes=(torch.float32,),
            note="around our kernels it is fla's own PyTorch, which rounds sums to bf16",
        )
        for module in ("chunk", "fused_chunk", "fused_recurrent")
    ),
    *(
        OracleCase(
            f"ops.retention.{module}.{module}_retention", r.retention,
            "fla's simple gated linear attention", shapes="q k=BTHK v=BTHV initial_state=NHKV",
        )
        for module in ("chunk", "fused_chunk", "fused_recurrent")
    ),
    OracleCase(
        "ops.retention.parallel.parallel_retention", r.retention,
        "fla's simple gated linear attention", shapes="q k=BTHK v=BTHV", states=(),
        rules=scores_of_rows,
    ),
    *(
        OracleCase(
            f"ops.lightning_attn.{module}.{module}_lightning_attn", r.lightning_attention,
            "fla's simple gated linear attention", shapes="q k=BTHK v=BTHV initial_state=NHKV",
            options={"layer_idx": st.sampled_from((0, 3)), "num_layers": st.just(4)},
        )
        for module in ("chunk", "fused_recurrent")
    ),
    OracleCase(
        "ops.utils.cumsum.chunk_global_cumsum", r.cumsum, OURS, shapes="s=BTHK",
        kinds={"s": "log_decay"}, options={"output_dtype": st.just(torch.float32)}, states=(),
    ),
    OracleCase("ops.hgrn.chunk.chunk_hgrn", r.hgrn, "fla"),
    OracleCase("ops.hgrn.fused_recurrent.fused_recurrent_hgrn", r.hgrn, "fla"),
    *(
        OracleCase(
            f"ops.gsa.{module}.{module}_gsa", r.gsa, "fla", shapes=SLOT_STATES,
            call=with_pair_of_states, states=("h_k", "h_v"), together=(("h_k", "h_v"),), kept=PAIR,
        )
        for module in ("chunk", "fused_recurrent")
    ),
    OracleCase(
        "ops.gsa.gate.fused_additive_gate", r.additive_gate, OURS,
        shapes="x=BTHK initial_state=N1HK",
        options={
            "output_dtype": st.just(torch.float32), "gate_dtype": st.just(torch.float32),
        },
        neutral={"initial_state": -math.inf},
    ),
    OracleCase(
        "ops.abc.chunk.chunk_abc", r.abc, "fla; the sum of slots token by token, ours",
        shapes="q k=BTHK v=BTHV s=BTHM h_k=NHKM h_v=NHMV z=N1HM",
        call=with_pair_of_states, states=("h_k", "h_v", "z"),
        together=(("h_k", "h_v", "z"),), kept=PAIR | {"z"}, neutral={"z": -math.inf},
        note="fla hands on two states, with which a sequence cannot be continued",
    ),
    OracleCase("ops.rwkv6.chunk.chunk_rwkv6", r.rwkv6, "fla", kept=frozenset({"w"})),
    OracleCase(
        "ops.rwkv6.fused_recurrent.fused_recurrent_rwkv6", r.rwkv6, "fla", kept=frozenset({"w"})
    ),
    *(
        OracleCase(
            f"ops.based.{module}.{module}_based", r.based, "fla", shapes="q k=BTHK v=BTHV",
            options={"use_norm": st.booleans()}, widths=(1, 4, 7), states=(),
        )
        for module in ("parallel", "fused_chunk")
    ),
    OracleCase(
        "ops.rebased.parallel.parallel_rebased", r.rebased, OURS,
        options={
            "eps": st.sampled_from((1e-5, 1e-2)), "use_scale": st.booleans(),
            "use_normalize": st.booleans(), "return_both": st.booleans(),
        },
        # a sum of scores close to 0 says nothing
        kinds={"q": "positive", "k": "positive"}, widths=(4, 7), states=(),
        note="fla's reference has an eps of 1e-6 and neither option",
    ),
    OracleCase("ops.delta_rule.chunk.chunk_delta_rule", r.delta_rule, "fla", kinds=UNIT_KEYS),
    OracleCase(
        "ops.delta_rule.fused_recurrent.fused_recurrent_delta_rule", r.delta_rule, "fla",
        shapes="q k=BTHK v=BTHV beta=BTH initial_state=NHKV", kinds=UNIT_KEYS,
    ),
    OracleCase(
        "ops.gated_delta_rule.chunk.chunk_gated_delta_rule", r.gated_delta_rule, "fla",
        kinds=UNIT_KEYS, options={"use_gate_in_kernel": st.booleans()}, rules=gated_rules,
        refused=frozenset({"cp_context"}),
    ),
    OracleCase(
        "ops.gated_delta_rule.fused_recurrent.fused_recurrent_gated_delta_rule",
        r.gated_delta_rule, "fla; with gk its reference of KDA",
        shapes="q k=BTHK v=BTGV g beta=BTG gk=BTGK A_log dt_bias=G initial_state=NGKV",
        kinds=UNIT_KEYS, rules=gated_rules, refused=frozenset({"gv"}),
    ),
    OracleCase(
        "ops.gated_delta_rule.gate.fused_gdn_gate", r.gdn_gate, "fla",
        shapes="g=BTH A_log dt_bias=H", kinds={"g": "normal"}, states=(),
        options={"output_dtype": st.just(torch.float32)},
    ),
    OracleCase(
        "ops.gated_delta_product.chunk.chunk_gated_delta_product", r.gated_delta_product, "fla",
        kinds=UNIT_KEYS, refused=frozenset({"cp_context"}),
    ),
    *(
        OracleCase(
            f"ops.comba.{module}.{module}_comba", r.comba, OURS, kinds={**UNIT_KEYS, "p": "unit"},
            note="fla's naive_recurrent_comba erases after the decay, its kernels before it",
        )
        for module in ("chunk", "fused_recurrent")
    ),
    *(
        OracleCase(
            f"ops.gated_oja_rule.{module}.{module}_gated_oja_rule", r.oja, OURS,
            kinds={"v": "unit"},
            options={"use_q_l2norm": st.booleans(), "use_k_l2norm": st.booleans()},
        )
        for module in ("chunk", "fused_recurrent")
    ),
    *(
        OracleCase(
            f"ops.ttt.{module}.{module}_ttt_linear", r.ttt, "fla",
            kinds={
                **UNIT_KEYS, "w": "normal", "eta": "rate", "initial_state": "small",
                "initial_state_bias": "small",
            },
            options={"eps": st.sampled_from((1e-6, 1e-3))},
            states=("initial_state", "initial_state_bias"), widths=(4, 7, 16),
            note="tokens that fill the last mini-batch change its bias, as in fla's kernels",
        )
        for module in ("chunk", "fused_chunk")
    ),
    OracleCase(
        "ops.rwkv4.fused_recurrent.fused_recurrent_rwkv4", r.rwkv4, OURS,
        kinds={"w": "small", "state": "positive"}, call=rwkv4_state, states=("state", "state"),
        kept=frozenset({"w", "u", "state"}),
    ),
    OracleCase(
        "ops.mesa_net.chunk.chunk_mesa_net", r.mesa, "fla, solved exactly",
        shapes="q k v=BTHK g beta=BTH lamb=HK h_kk_init h_kv_init=NHKK",
        kinds={**UNIT_KEYS, "lamb": "positive", "h_kk_init": "positive_definite"},
        options={"max_CG_iteration": st.just(30)},
        states=("h_kk_init", "h_kv_init"), kept=frozenset({"lamb", "h_kk_init", "h_kv_init"}),
    ),
    *(
        OracleCase(
            f"ops.momentum_delta_rule.{module}.{module}_momentum_delta_rule", r.momentum, "fla",
            kinds={**UNIT_KEYS, "p": "unit"}, options={"use_p_times_alpha": st.booleans()},
            kept=frozenset({"log_alpha", "log_mu"}),
        )
        for module in ("chunk", "fused_recurrent")
    ),
    OracleCase(
        "ops.mesa_net.decoding_one_step.mesa_net_decoding_one_step", r.mesa_step, OURS,
        shapes="q k v=BHK g beta=BH lamb=HK prev_h_kk prev_h_kv=BHKK",
        kinds={**UNIT_KEYS, "lamb": "positive", "prev_h_kk": "positive_definite"},
        options={"max_CG_iteration": st.sampled_from((0, 1, 3, 30))}, states=(),
        kept=frozenset({"lamb", "prev_h_kk", "prev_h_kv"}), forward_only=True,
        note="fla's reference adds 1e-5 to denominators",
    ),
    *(
        OracleCase(
            f"ops.precond_gated_delta_rule.{module}.{module}_precond_gated_delta_rule",
            r.preconditioned_delta_rule, "fla; with gk its reference of KDA",
            shapes="q k=BTHK v=BTGV g beta=BTG gk=BTGK g_atk beta_atk=BTH log_atk_scale=H "
            "initial_state=NGKV initial_A_state=NHK" if module == "fused_recurrent" else "",
            kinds={**UNIT_KEYS, "initial_A_state": "positive"}, options=MASSES,
            kept=PRECONDITIONER, states=("initial_state", "initial_A_state"),
            refused=frozenset({"cp_context", "gv"}), needed=frozenset({"g_atk", "beta_atk"}),
        )
        for module in ("chunk", "fused_recurrent")
    ),
    *(
        OracleCase(
            f"ops.precond_kda.{module}.{module}_precond_kda", r.preconditioned_kda, "fla",
            shapes="q k=BTHK v=BTGV g=BTGK beta=BTG g_atk beta_atk=BTH log_atk_scale=H "
            "initial_state=NGKV initial_A_state=NHK A_log=G dt_bias=X",
            kinds={**UNIT_KEYS, "initial_A_state": "positive"}, options={**MASSES, **KDA_GATE},
            rules=decay_from_logits, kept=PRECONDITIONER,
            states=("initial_state", "initial_A_state"),
            refused=frozenset({"cp_context", "return_intermediate_states"}),
            note="fla's reference does not normalise, its kernels do",
        )
        for module in ("chunk", "fused_recurrent")
    ),
    *(
        OracleCase(
            f"ops.cyfa.{module}.{module}_cyfa", r.cyfa, "fla",
            shapes="q k=BTHK v=BTHV g delta beta=BTH readout=HPP q_norm_weight k_norm_weight=K "
            "h_k=NHKM h_v=NHMV h_phase=NH",
            kinds={"q_norm_weight": "positive", "k_norm_weight": "positive", "h_phase": "phase"},
            options={
                "q_norm_eps": st.sampled_from((1e-5, 1e-2)),
                "k_norm_eps": st.sampled_from((1e-5, 1e-2)),
            },
            call=with_pair_of_states, states=("h_k", "h_v", "h_phase"),
            together=(("h_k", "h_v", "h_phase"),), kept=PAIR | {"h_phase", "delta"},
        )
        for module in ("chunk", "fused_recurrent")
    ),
    OracleCase(
        "ops.log_linear_attn.chunk.chunk_log_linear_attn", r.log_linear, "fla",
        kinds={"g": "log_decay"}, options={"scale": st.sampled_from((None, 1.0, 0.3))},
        states=(), kept=frozenset({"level_scales"}),
        without=("initial_state", "output_final_state"),
        note="no states: ours continue where they stopped, see tests/unit",
    ),
    *(
        OracleCase(
            f"ops.kda.{module}.{module}_kda", r.kda, "fla",
            shapes="q k=BTHK v=BTGV g=BTGK beta=BTG A_log=G dt_bias=X initial_state=NGKV",
            kinds=UNIT_KEYS, options=KDA_GATE, rules=kda_rules,
            refused=frozenset({"cp_context"}), without=("return_intermediate_states",),
        )
        for module in ("chunk", "fused_recurrent")
    ),
    OracleCase(
        "ops.kda.gate.fused_kda_gate", r.kda_gate, "fla",
        shapes="g=BTHK A_log=H dt_bias=Y", kinds={"g": "normal", "A_log": "small"},
        options={**LOWER_BOUND, "output_dtype": st.just(torch.float32)}, states=(),
        rules=with_rate_or_bound,
    ),
    *(
        OracleCase(
            f"ops.gdn2.{module}.{module}_gdn2", r.gdn2, "fla",
            shapes="q k=BTHK v w=BTGV g b=BTGK A_log=G dt_bias=X initial_state=NGKV",
            kinds={**UNIT_KEYS, "b": "unit_interval", "w": "unit_interval"}, options=KDA_GATE,
            rules=decay_from_logits, refused=frozenset({"cp_context"}),
            without=("return_intermediate_states",),
        )
        for module in ("chunk", "fused_recurrent")
    ),
    *(
        OracleCase(
            f"ops.generalized_delta_rule.dplr.{module}.{module}_dplr_delta_rule", r.dplr, "fla",
            kinds={"a": "unit", "b": "small"}, refused=frozenset({"cp_context"}),
        )
        for module in ("chunk", "fused_recurrent")
    ),
    *(
        OracleCase(
            f"ops.generalized_delta_rule.iplr.{module}.{module}_iplr_delta_rule", r.iplr, "fla",
            kinds={"a": "unit", "b": "small"},
        )
        for module in ("chunk", "fused_recurrent")
    ),
    *(
        OracleCase(
            f"ops.rwkv7.{path}", reference, "fla: the generalized delta rule",
            kinds={"w": "mild_log_decay", "kk": "unit", **kinds}, kept=frozenset({"w"}),
            refused=frozenset({"cp_context"}),
        )
        for path, reference, kinds in (
            ("chunk.chunk_rwkv7", r.rwkv7, {"a": "unit", "b": "small"}),
            ("fused_recurrent.fused_recurrent_rwkv7", r.rwkv7, {"a": "unit", "b": "small"}),
            (
                "fused_recurrent.fused_mul_recurrent_rwkv7", r.fused_mul_rwkv7,
                {"a": "unit_interval"},
            ),
        )
    ),
)  # fmt: skip
