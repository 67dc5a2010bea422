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
    Tolerance,
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
WRITES_OVER_INPUTS = ("channel_mixing_rwkv7", "fused_addcmul_rwkv7")
"""Gradients are written to the memory of inputs."""


class Unsupported(NamedTuple):
    """Calls that a kernel of fla gets wrong or refuses."""

    reason: str
    is_of: Callable[[Call], bool]


def shares_keys(call: Call) -> bool:
    return call.sizes["G"] != call.sizes["H"]


NO_STRENGTHS = Unsupported(
    "the ones for a beta that is not given are as many as heads of keys, not of values",
    lambda call: "beta" not in call.plan and shares_keys(call),
)
UNSUPPORTED = {
    "fused_recurrent_comba": NO_STRENGTHS,
    "fused_recurrent_gated_delta_rule": NO_STRENGTHS,
    "fused_recurrent_gated_oja_rule": NO_STRENGTHS,
    "fused_recurrent_precond_gated_delta_rule": NO_STRENGTHS,
    "fused_recurrent_precond_kda": Unsupported(
        "strengths and decays of the preconditioner are read per head of values", shares_keys
    ),
    "chunk_gated_oja_rule": Unsupported("as many results as heads of queries", shares_keys),
    "fused_recurrent_rwkv6": Unsupported(
        "the gradient of w pairs each decay with the wrong neighbour",
        lambda call: bool(call.plan.get("reverse")),
    ),
    "fused_recurrent_gsa": Unsupported("shared keys only for one token", shares_keys),
}
"""Listed in docs/kernels.md."""
ALL_BLOCKS = {
    "block_counts": st.just(16), "block_size": st.just(32), "window_size": st.sampled_from((0, 32)),
}  # fmt: skip
"""So many that no rounding decides which ones a query of sparse attention selects."""
WITHOUT_GRADIENT = ("return_weights", "use_cache")
"""Options that ask for results of which fla's kernels have no gradient."""


def tolerance_of_kernels(call: Call, name: str) -> Tolerance:
    """As in `tests/gpu/test_kernels.py`; numbers are rounded to bf16 or tf32."""
    dtype, rounding = ("bf16", 2e-3) if call.dtype is torch.bfloat16 else ("fp32", 5e-4)
    for looser in LIMITS[call.case.operator].looser:
        if looser.dtype == dtype and looser.tensor in ("", name):
            return Tolerance(looser.tolerance, rounding)
    return Tolerance(TOLERANCES["products"][dtype], rounding)


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


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.function_name, marks=needs_triton) for c in CASES]
)
def test_kernels_of_fla_equal_the_reference(
    triton, case: OracleCase, record_property: Callable[[str, object], None]
):
    limits = LIMITS[case.operator]
    case = with_limits(case, limits)
    sizes = SIZES | SIZES_OF.get(case.function_name, {})
    packs = set(limits.layouts) - set(FIXED) != set()
    unsupported = UNSUPPORTED.get(case.function_name)
    # of some states, or of a part of them, kernels have no gradient
    states = limits.call not in (with_constant_states, without_oldest)
    end = time.monotonic() + float(os.environ.get("ORACLE_SECONDS", "60"))
    compared = 0

    @settings(
        max_examples=int(os.environ.get("ORACLE_CALLS", "3")),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=[*HealthCheck],
    )
    @given(calls(case, sizes_by_letter=sizes, packs=packs))
    def check(call: Call) -> None:
        nonlocal compared
        assume(unsupported is None or not unsupported.is_of(call))
        # Hypothesis begins with the smallest call, which says least
        assume(compared or (call.sizes["T"] > 1 and call.dtype is case.dtypes[0]))
        if compared and time.monotonic() > end:
            return
        for name in (*(() if states else ("output_final_state",)), *WITHOUT_GRADIENT):
            call.plan.pop(name, None)
        arguments = make_arguments(call)
        found = evaluate(call, on_device(arguments), lambda x: run_kernels(call, x))
        expected = evaluate_reference(call, arguments)
        wrong = list_differences(call, found, expected, tolerance_of_kernels)
        assert not wrong, "\n".join(wrong)
        compared += 1

    check()
    record_property("calls", compared)
