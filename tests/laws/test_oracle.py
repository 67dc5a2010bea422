"""Operators equal references in fp64 for generated calls: every argument, states, all gradients.

A few calls of each operator; `make oracle` makes as many as one likes. These are our operators in
PyTorch; tests/gpu/test_oracle.py calls fla's kernels.
"""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from flame_accel.kernels.replacements import REPLACEMENTS
from flame_accel.kernels.signatures import CHOICES_OF_KERNELS
from tests.helpers.oracle import Call, OracleCase, calls, make_arguments
from tests.helpers.oracle_cases_attention import ATTENTION_CASES
from tests.helpers.oracle_cases_modules import MODULE_CASES
from tests.helpers.oracle_cases_recurrence import RECURRENCE_CASES
from tests.helpers.oracle_evaluation import (
    allowed_for_ours,
    evaluate,
    evaluate_reference,
    list_differences,
    run_operator,
)

CASES = (*RECURRENCE_CASES, *ATTENTION_CASES, *MODULE_CASES)
COMPARED_ELSEWHERE = {
    "modules.activations.": "with PyTorch's functions, in tests/unit/kernels/modules",
    "modules.causal_conv1d.ops.causal_conv1d_update": "with causal_conv1d, in the same place",
    "modules.fused_bitlinear.": "with a rounded product, in the same place",
    "modules.fused_cross_entropy.": "with PyTorch's loss, in the same place",
    "modules.fused_kl_div.": "with PyTorch's loss, in the same place",
    "modules.fused_linear_cross_entropy.": "with PyTorch's loss, in the same place",
    "modules.grpo.": "with its formula, in the same place",
    "modules.norm.": "norms here, and the product that follows in the same place",
    "ops.gla.fused_chunk.": "the same function as chunk_gla; fla has only the name",
    "ops.utils.": "with PyTorch's functions, in the same place",
    "ops.wall_attn.decode.": "with one pass, in tests/unit/kernels/attention",
    "layers.": "a layer, in tests/unit/kernels and tests/laws/test_all_models.py",
    "models.": "PyTorch's own attention, in tests/unit/kernels/attention/test_cat.py",
}
"""Beginnings of the paths of operators without a case, and what they are compared with."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.function_name)
def test_generated_calls_equal_the_reference(case: OracleCase, pytestconfig: pytest.Config):
    wanted = pytestconfig.getoption("oracle_calls")

    @settings(
        max_examples=wanted or 4,
        derandomize=not wanted,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[*HealthCheck],
    )
    @given(calls(case, most_tokens=130 if wanted else 65))
    def check(call: Call) -> None:
        arguments = make_arguments(call)
        found = evaluate(call, arguments, lambda x: run_operator(call, case.function, x))
        expected = evaluate_reference(call, arguments)
        wrong = list_differences(found, expected, allowed_for_ours(call, arguments, expected))
        assert not wrong, "\n".join(wrong)

    check()


def test_every_served_operator_has_a_reference_or_a_reason():
    without = REPLACEMENTS.keys() - {case.operator for case in CASES}
    assert {p for p in without if not p.startswith(tuple(COMPARED_ELSEWHERE))} == set()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.function_name)
def test_every_argument_of_fla_is_drawn_or_listed(case: OracleCase):
    # what several arguments of a case are made into
    joined = {"initial_state"} if case.together else {"residuals"}
    assert {*case.parameters} - case.drawn <= joined | CHOICES_OF_KERNELS.keys()
