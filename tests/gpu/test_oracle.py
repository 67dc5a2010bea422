"""fla's Triton kernels equal the references of `oracle` on generated calls: results and gradients.

Two calls of each operator, the same every time, with heads of one width, so that few kernels are
compiled. As in test_kernels.py, several processes share a GPU best (one line):

    for i in $(seq 0 11); do ORACLE_SHARD=$i/12
    python -m pytest -m gpu tests/gpu/test_oracle.py > oracle$i.log 2>&1 & done; wait;
    grep -hE "^E  |call=|passed|failed" oracle?*.log

`ORACLE_CALLS` is how many calls of each are drawn (3), `ORACLE_SECONDS` after how many seconds no
further one is made (60): compiling takes nearly all of the time.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from torch import Tensor

from tests.helpers.oracle import Call, OracleCase, calls, make_arguments
from tests.helpers.oracle_cases_attention import ATTENTION_CASES
from tests.helpers.oracle_cases_modules import MODULE_CASES
from tests.helpers.oracle_cases_recurrence import RECURRENCE_CASES
from tests.helpers.oracle_evaluation import (
    Allowed,
    evaluate,
    evaluate_reference,
    list_differences,
    run_operator,
)
from tests.helpers.parity import FIXED, TOLERANCES, Arguments, Case
from tests.helpers.parity_cases_attention import ATTENTION
from tests.helpers.parity_cases_delta import DELTA_RULES
from tests.helpers.parity_cases_modules import MODULES, without_oldest
from tests.helpers.parity_cases_recurrence import RECURRENCES, with_constant_states
from tests.helpers.triton_device import DEVICE, needs_triton

INDEX, COUNT = map(int, os.environ.get("ORACLE_SHARD", "0/1").split("/"))
LIMITS = {
    case.operator: case
    # of several cases the first one, whose heads are as wide as here
    for case in reversed((*RECURRENCES, *DELTA_RULES, *ATTENTION, *MODULES))
}
"""What fla's kernels take, which `tests/gpu/test_kernels.py` compares with ours."""
CASES = [
    case for case in (*RECURRENCE_CASES, *ATTENTION_CASES, *MODULE_CASES) if case.operator in LIMITS
][INDEX::COUNT]
SIZES = {"D": 128, "F": 128, "K": 64, "M": 32, "P": 31, "R": 16, "V": 64, "W": 4}
SIZES_OF = {
    "fused_chunk_based": {"K": 16},
    "parallel_nsa": {"H": 16, "G": 1},
}
"""What some kernels need."""
KINDS_OF = {
    # fla's kernels overflow with steep decays, or lose all digits
    **dict.fromkeys(
        ("parallel_wall_attn", "parallel_path_attn"),
        dict.fromkeys(("g", "g_scalar"), "gentle_log_decay"),
    ),
    "chunk_momentum_delta_rule": dict.fromkeys(("log_alpha", "log_mu"), "gentle_log_decay"),
    "chunk_simple_gla": {"g_gamma": "gentle_log_decay"},
    # as small as that of fla's layer: gradients of queries and keys cancel otherwise
    "parallel_parallax": {"r": "slight"},
}
WRITES_OVER_INPUTS = ("fused_addcmul_rwkv7",)
"""Gradients are written to the memory of inputs, whether one wants it or not."""


class Unsupported(NamedTuple):
    """Calls that a kernel of fla gets wrong or refuses."""

    reason: str
    is_of: Callable[[Call], bool]


def shares_keys(call: Call) -> bool:
    return call.sizes["G"] != call.sizes["H"]


NO_STRENGTHS = Unsupported(
    "the ones for a `beta` that is not given are one per head of keys, and read per head of values",
    lambda call: "beta" not in call.plan and shares_keys(call),
)
NO_SHARED_KEYS = Unsupported("one head of values to each of keys", shares_keys)
UNSUPPORTED = {
    **dict.fromkeys(
        (
            "fused_recurrent_comba", "fused_recurrent_gated_delta_rule",
            "fused_recurrent_gated_oja_rule", "fused_recurrent_precond_gated_delta_rule",
        ),
        NO_STRENGTHS,
    ),
    **dict.fromkeys(
        ("chunk_gated_oja_rule", "chunk_gdn2", "chunk_precond_kda", "deltaformer_attn"),
        NO_SHARED_KEYS,
    ),
    "fused_recurrent_gsa": Unsupported("shared keys for one token alone", shares_keys),
    "fused_recurrent_precond_kda": Unsupported(
        "the preconditioner's strengths and decays are read per head of values", shares_keys
    ),
    "fused_recurrent_rwkv6": Unsupported(
        "with `reverse`, the gradient of `w` pairs each decay with a neighbour of the wrong side",
        lambda call: bool(call.plan.get("reverse")),
    ),
    "chunk_mesa_net": Unsupported(
        "one of the two states alone is not read",
        lambda call: ("h_kk_init" in call.plan) != ("h_kv_init" in call.plan),
    ),
}  # fmt: skip
"""Listed in docs/kernels.md."""
ALL_BLOCKS = {
    "block_counts": st.just(16), "block_size": st.just(32), "window_size": st.sampled_from((0, 32)),
}  # fmt: skip
"""So many that no rounding decides which ones a query of sparse attention selects."""
WITHOUT_GRADIENT = ("return_weights", "use_cache")
"""Options that ask for results of which fla's kernels have no gradient."""


def allowed_for_kernels(call: Call) -> Allowed:
    """As in `tests/gpu/test_kernels.py`; numbers about 1 are rounded to bf16 or tf32."""
    dtype, rounding = ("bf16", 2e-3) if call.dtype is torch.bfloat16 else ("fp32", 5e-4)
    looser = [x for x in LIMITS[call.case.operator].looser if x.dtype == dtype]

    def allowed(name: str, e: Tensor) -> float:
        tolerances = [x.tolerance for x in looser if x.tensor in ("", name)]
        tolerance = [*tolerances, TOLERANCES["products"][dtype]][0]
        return tolerance * e[e.isfinite()].norm().item() + rounding * e.numel() ** 0.5

    return allowed


def with_limits(case: OracleCase, limits: Case) -> OracleCase:
    """What fla's kernels have a gradient for, and keep in fp32."""
    name = case.function_name
    # bf16 first, for which kernels are compiled in less time
    dtypes = sorted(case.dtypes, key=lambda dtype: dtype is torch.float32)
    if "fp32" in limits.refusals:
        dtypes.remove(torch.float32)
    return case._replace(
        forward_only=case.forward_only or bool(limits.forward_only),
        fixed=case.fixed | limits.fixed,
        kept=case.kept | limits.kept,
        dtypes=tuple(dtypes),
        kinds={**case.kinds, **KINDS_OF.get(name, {})},
        options=ALL_BLOCKS if name == "parallel_nsa" else case.options,
    )


def on_device(arguments: Arguments) -> Arguments:
    return {
        name: x.to(DEVICE) if isinstance(x, Tensor) and name != "cu_seqlens_cpu" else x
        for name, x in arguments.items()
    }


def run_kernels(call: Call, arguments: Arguments) -> list[Tensor]:
    if call.case.function_name in WRITES_OVER_INPUTS:
        arguments = {
            name: x.clone() if isinstance(x, Tensor) else x for name, x in arguments.items()
        }
    return run_operator(call, call.case.function, arguments)


def differences_from_reference(call: Call) -> list[str]:
    """Results and gradients of fla's kernels that are not those of the reference."""
    # of some states, or of a part of them, kernels have no gradient
    states = LIMITS[call.case.operator].call not in (with_constant_states, without_oldest)
    for name in (*(() if states else ("output_final_state",)), *WITHOUT_GRADIENT):
        call.plan.pop(name, None)
    if "inplace" in call.case.options:
        call.plan["inplace"] = False
    arguments = make_arguments(call)
    found = evaluate(call, on_device(arguments), lambda x: run_kernels(call, x))
    expected = evaluate_reference(call, arguments)
    return list_differences(found, expected, allowed_for_kernels(call))


def calls_of_kernels(case: OracleCase) -> st.SearchStrategy[Call]:
    """Those that fla's kernels support."""
    limits, unsupported = LIMITS[case.operator], UNSUPPORTED.get(case.function_name)
    sizes = SIZES | SIZES_OF.get(case.function_name, {})
    packs = set(limits.layouts) - set(FIXED) != set()
    drawn = calls(with_limits(case, limits), sizes_by_letter=sizes, packs=packs)
    return drawn.filter(lambda call: unsupported is None or not unsupported.is_of(call))


def generated(number: int) -> settings:
    """The same calls every time."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=[*HealthCheck],
    )


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.function_name, marks=needs_triton) for c in CASES]
)
def test_kernels_of_fla_equal_the_reference(
    triton, case: OracleCase, record_property: Callable[[str, object], None]
):
    end = time.monotonic() + float(os.environ.get("ORACLE_SECONDS", "60"))
    compared = 0

    @generated(int(os.environ.get("ORACLE_CALLS", "3")))
    @given(calls_of_kernels(case))
    def check(call: Call) -> None:
        nonlocal compared
        # Hypothesis begins with the smallest call, which says least
        assume(compared or (call.sizes["T"] > 1 and call.dtype is call.case.dtypes[0]))
        if compared and time.monotonic() > end:
            return
        wrong = differences_from_reference(call)
        assert not wrong, "\n".join(wrong)
        compared += 1

    check()
    assert compared
    record_property("calls", compared)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=c.function_name, marks=needs_triton)
        for c in CASES
        if c.function_name in ("chunk_rwkv7", "chunk_cyfa", "chunk_log_linear_attn")
    ],
)
def test_documents_without_tokens_are_passed_over(triton, case: OracleCase):
    def with_an_empty_document(call: Call) -> Call:
        first, *others = call.lengths or ()
        plan = {**call.plan, "cu_seqlens": (first, 0, *others)}
        return call._replace(plan=plan, sizes={**call.sizes, "N": call.sizes["N"] + 1})

    packed = calls_of_kernels(case).filter(lambda call: bool(call.lengths))

    @generated(1)
    @given(packed.map(with_an_empty_document))
    def check(call: Call) -> None:
        wrong = differences_from_reference(call)
        assert not wrong, "\n".join(wrong)

    check()
