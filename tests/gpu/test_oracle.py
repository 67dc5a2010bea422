"""fla's Triton kernels equal the references of `oracle` on generated calls: results and gradients.

Two calls of each operator, the same every time, with heads of one width, so that few kernels are
compiled. As in test_kernels.py, several processes share a GPU best (one line):

    for i in $(seq 0 11); do ORACLE_SHARD=$i/12
    python -m pytest -m gpu tests/gpu/test_oracle.py > oracle$i.log 2>&1 & done; wait;
    grep -hE "^E  |call=|passed|failed" oracle?*.log
"""

import os

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from tests.helpers.oracle import Call, OracleCase, calls, make_arguments
from tests.helpers.oracle_cases_attention import ATTENTION_CASES
from tests.helpers.oracle_cases_modules import MODULE_CASES
from tests.helpers.oracle_cases_recurrence import RECURRENCE_CASES
from tests.helpers.oracle_evaluation import (
    evaluate,
    evaluate_reference,
    list_differences,
    run_operator,
)
from tests.helpers.parity import FIXED, TOLERANCES, Arguments, Case
from tests.helpers.parity_cases_attention import ATTENTION
from tests.helpers.parity_cases_delta import DELTA_RULES
from tests.helpers.parity_cases_modules import MODULES
from tests.helpers.parity_cases_recurrence import RECURRENCES, with_constant_states
from tests.helpers.triton_device import DEVICE, needs_triton

INDEX, COUNT = map(int, os.environ.get("ORACLE_SHARD", "0/1").split("/"))
LIMITS = {case.operator: case for case in (*RECURRENCES, *DELTA_RULES, *ATTENTION, *MODULES)}
"""What fla's kernels take, which `tests/gpu/test_kernels.py` compares with ours."""
CASES = [
    case for case in (*RECURRENCE_CASES, *ATTENTION_CASES, *MODULE_CASES) if case.operator in LIMITS
][INDEX::COUNT]
SIZES = {"D": 128, "F": 128, "K": 64, "M": 32, "P": 31, "R": 16, "V": 64, "W": 4}
GENTLE = {
    **dict.fromkeys(("parallel_wall_attn", "parallel_path_attn"), ("g", "g_scalar")),
    "chunk_momentum_delta_rule": ("log_alpha", "log_mu"),
}
"""Decays that fla's kernels overflow with, or lose all digits of, where they are steep."""
ALL_BLOCKS = {
    "block_counts": st.just(16), "block_size": st.just(32), "window_size": st.sampled_from((0, 32)),
}  # fmt: skip
"""So many that no rounding decides which ones a query of sparse attention selects."""
WITHOUT_GRADIENT = ("return_weights", "use_cache")
"""Options that ask for results of which fla's kernels have no gradient."""


def tolerance_of_kernels(call: Call, name: str) -> float:
    """As in `tests/gpu/test_kernels.py`."""
    dtype = "bf16" if call.dtype is torch.bfloat16 else "fp32"
    for looser in LIMITS[call.case.operator].looser:
        if looser.dtype == dtype and looser.tensor in ("", name):
            return looser.tolerance
    return TOLERANCES["products"][dtype]


def with_limits(case: OracleCase, limits: Case) -> OracleCase:
    """What fla's kernels have a gradient for, and keep in fp32."""
    name = case.function_name
    gentle = dict.fromkeys(GENTLE.get(name, ()), "gentle_log_decay")
    dtypes = case.dtypes if "fp32" not in limits.refusals else (torch.bfloat16,)
    return case._replace(
        forward_only=case.forward_only or bool(limits.forward_only),
        fixed=case.fixed | limits.fixed,
        kept=case.kept | limits.kept,
        dtypes=dtypes,
        kinds={**case.kinds, **gentle},
        options=ALL_BLOCKS if name == "parallel_nsa" else case.options,
    )


def on_device(arguments: Arguments) -> Arguments:
    return {
        name: x.to(DEVICE) if isinstance(x, Tensor) and name != "cu_seqlens_cpu" else x
        for name, x in arguments.items()
    }


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.function_name, marks=needs_triton) for c in CASES]
)
def test_kernels_of_fla_equal_the_reference(triton, case: OracleCase):
    limits = LIMITS[case.operator]
    case = with_limits(case, limits)
    sizes = SIZES | ({"H": 16, "G": 1} if case.function_name == "parallel_nsa" else {})
    packs = set(limits.layouts) - set(FIXED) != set()

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
        dropped = ("output_final_state",) if limits.call is with_constant_states else ()
        for name in (*dropped, *WITHOUT_GRADIENT):
            call.plan.pop(name, None)
        arguments = make_arguments(call)
        found = evaluate(call, on_device(arguments), lambda x: run_operator(call, case.function, x))
        expected = evaluate_reference(call, arguments)
        wrong = list_differences(call, found, expected, tolerance_of_kernels)
        assert not wrong, "\n".join(wrong)

    check()
