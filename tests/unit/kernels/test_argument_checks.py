"""What fla refuses is refused: packed rows in a batch, other shapes, dtypes, devices, options."""

import inspect

import pytest
import torch
from fla import ops
from fla.modules.causal_conv1d import causal_conv1d
from fla.ops.attn.decoding import attn_decoding_one_step
from fla.ops.gdn2 import chunk_gdn2
from torch import Tensor

from flame_accel.kernels.argument_checks import dimension_letters_by_argument
from flame_accel.kernels.signatures import ArgumentError
from tests.helpers.parity import Case, Draw, Layout, resolve
from tests.helpers.parity_cases_attention import ATTENTION
from tests.helpers.parity_cases_delta import DELTA_RULES
from tests.helpers.parity_cases_recurrence import RECURRENCES

CASES = [case for case in (*RECURRENCES, *DELTA_RULES, *ATTENTION) if not case.variant]
EDGES = torch.tensor([0, 3, 8])
every_operator = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
qkv = torch.randn(3, 1, 8, 2, 16).unbind()


def draw(rows: int) -> Draw:
    return Draw(Layout(rows, 8), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in CASES
        if "cu_seqlens" in inspect.signature(resolve(f"fla.{c.operator}")).parameters
    ],
    ids=lambda case: case.name,
)
def test_boundaries_of_several_rows_are_refused(case: Case):
    arguments = case.build(draw(2)) | {"cu_seqlens": EDGES}
    with pytest.raises(ArgumentError, match="batch size of 1"):
        case.call(resolve(f"fla.{case.operator}"), arguments)


@every_operator
def test_an_argument_of_another_shape_is_named(case: Case):
    function, arguments = resolve(f"fla.{case.operator}"), case.build(draw(1))
    name = case.operator.rpartition(".")[2]
    shapes = {
        a: s
        for a, s in dimension_letters_by_argument(name).items()
        if isinstance(arguments.get(a), Tensor)
    }
    for argument, letters in shapes.items():
        x = arguments[argument]
        wrong = [x.unsqueeze(0)]
        if sum(s.count(letters[-1]) for s in shapes.values()) > 1:
            wrong.append(torch.cat((x, x, x), -1))
        for value in wrong:
            with pytest.raises(ArgumentError, match=rf"\b{name}\b"):
                function(**arguments | {argument: value})


@pytest.mark.parametrize(
    ("edges", "reason"),
    [
        ([0, 5], "end at 5"),
        ([1, 8], "rise from 0"),
        ([0, 6, 3, 8], "rise from 0"),
        ([[0, 8]], "whole numbers"),
        ([0.0, 8.0], "whole numbers"),
    ],
)
def test_boundaries_cover_the_row(edges: list[int], reason: str):
    with pytest.raises(ArgumentError, match=reason):
        ops.chunk_linear_attn(*qkv, cu_seqlens=torch.tensor(edges))


def test_a_convolution_takes_one_packed_row():
    with pytest.raises(ArgumentError, match="batch size of 1"):
        causal_conv1d(torch.randn(2, 8, 4), torch.randn(4, 3), cu_seqlens=EDGES)


def test_tensors_are_floating_point_and_on_one_device():
    q, k, v = qkv
    with pytest.raises(ArgumentError, match="floating point numbers as k"):
        ops.chunk_retention(q, k.long(), v)
    with pytest.raises(ArgumentError, match="v on meta"):
        ops.chunk_retention(q, k, v.to("meta"))


def test_states_are_one_for_each_sequence_and_fp32_where_fla_says_so():
    state = torch.randn(3, 2, 16, 16)
    with pytest.raises(ArgumentError, match="initial_state"):
        ops.chunk_simple_gla(*qkv, initial_state=state, cu_seqlens=EDGES)
    with pytest.raises(ArgumentError, match="float32"):
        ops.chunk_gla(*qkv, -qkv[0].abs(), initial_state=state[:1].bfloat16())


def test_options_are_checked_as_by_fla():
    q, k, v = qkv
    g, beta = -q.abs(), q[..., 0].sigmoid()
    with pytest.raises(ValueError, match="`chunk_size` must be either 32 or 64"):
        ops.chunk_kda(q, k, v, g, beta, chunk_size=16)
    with pytest.raises(ValueError, match="`chunk_size` must be 64"):
        chunk_gdn2(q, k, v, g, q.sigmoid(), v.sigmoid(), chunk_size=32)
    with pytest.raises(ValueError, match="`chunk_size` must be a power of 2"):
        ops.chunk_simple_gla(q, k, v, chunk_size=48)
    with pytest.raises(ValueError, match="head_first"):
        ops.chunk_simple_gla(q, k, v, head_first=False)
    with pytest.raises(ValueError, match="use_beta_sigmoid_in_kernel"):
        ops.chunk_kda(q, k, v, g, beta, allow_neg_eigval=True)
    with pytest.raises(ValueError, match="A_log or lower_bound"):
        ops.chunk_kda(q, k, v, g, beta, use_gate_in_kernel=True)
    with pytest.raises(ValueError, match="from -5 to 0"):
        options = {"use_gate_in_kernel": True, "safe_gate": True, "lower_bound": -6.0}
        ops.chunk_kda(q, k, v, g, beta, **options)
    with pytest.raises(ValueError, match="lower_bound"):
        ops.chunk_dplr_delta_rule(q, k, v, q, k, g, lower_bound=0.5)
    with pytest.raises(ValueError, match="window_size of at least 1"):
        ops.parallel_attn(q, k, v, window_size=0)
    with pytest.raises(ValueError, match="multiples, not 3 and 2"):
        ops.parallel_attn(torch.randn(1, 8, 3, 16), k, v)


def test_what_cannot_be_left_out_is_named():
    q, k, v = qkv
    calls = {
        "g_atk and beta_atk": lambda: ops.fused_recurrent_precond_gated_delta_rule(q, k, v),
        "cu_seqlens": lambda: attn_decoding_one_step(q[:, :1], k, v),
        "weight": lambda: causal_conv1d(q.flatten(2)),
    }
    for missing, call in calls.items():
        with pytest.raises(ArgumentError, match=f"needs {missing}"):
            call()


@pytest.mark.parametrize("name", ["chunk_kda", "fused_recurrent_kda", "chunk_gated_delta_rule"])
def test_decay_rates_of_heads_have_any_shape(name):
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, 8, 2, 16) for _ in range(3))
    g, beta = torch.randn(1, 8, 2, 16), torch.rand(1, 8, 2)
    g = g if "kda" in name else g[..., 0]
    rates = torch.randn(2)
    found = []
    for shape in ((2,), (1, 1, 2, 1)):
        leaf = rates.view(shape).clone().requires_grad_()
        o, _ = getattr(ops, name)(q, k, v, g, beta, A_log=leaf, use_gate_in_kernel=True)
        o.square().sum().backward()
        assert leaf.grad is not None and leaf.grad.shape == shape
        found.append((o, leaf.grad.flatten()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    with pytest.raises(ValueError, match="A_log"):
        getattr(ops, name)(q, k, v, g, beta, A_log=torch.randn(1, 3), use_gate_in_kernel=True)
