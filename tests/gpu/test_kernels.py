"""Our operators and fla's Triton kernels give the same on a GPU: results, states and gradients.

Each is compared with ours in fp32 on the same inputs. One case is independent of another. Compiling
takes nearly all of the time, so a machine of sixteen cores is best used by twelve processes that
share its GPU (from the repository's root, one line):

    rm -f parity.jsonl; for i in $(seq 0 11); do PARITY_SHARD=$i/12 PARITY_REPORT=parity.jsonl
    python -m pytest -m gpu tests/gpu/test_kernels.py > parity$i.log 2>&1 & done; wait;
    tail -qn 1 parity?*.log; python tests/helpers/parity.py parity.jsonl

The last command prints the worst error of each operator. Without a GPU, `TRITON_INTERPRET=1` in
front of pytest runs the same kernels on the CPU, see `triton_on_cpu`; that takes minutes to hours.
"""

import inspect
import itertools
import os
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import torch

from flame_accel.diagnosis.conformance.laws import check_keeps_documents_apart
from flame_accel.kernels.argument_checks import check_arguments
from flame_accel.kernels.replacements import REPLACEMENTS
from flame_accel.kernels.signatures import bind_to_fla_signature_refusing_unsupported_arguments
from flame_accel.models import build_model
from flame_accel.models.catalogue import VOCABULARY_SIZE, tiny_config
from tests.helpers.parity import (
    DTYPES,
    LAYOUTS,
    Arguments,
    Case,
    Tensors,
    arguments_of,
    compare,
    evaluate,
    report,
    resolve,
    where_raised,
    widened,
)
from tests.helpers.parity_cases_attention import ATTENTION
from tests.helpers.parity_cases_delta import DELTA_RULES
from tests.helpers.parity_cases_modules import MODULES
from tests.helpers.parity_cases_recurrence import RECURRENCES
from tests.helpers.triton_device import DEVICE, INTERPRETED, needs_triton

CASES = (*RECURRENCES, *DELTA_RULES, *ATTENTION, *MODULES)
UNCOMPARED = {
    "ops.gla.fused_chunk.fused_chunk_gla": "fla has only the name: NotImplementedError",
    "modules.fused_kl_div.ops.fused_kl_div_bwd": "a product with a number",
    **dict.fromkeys(
        (
            "ops.rwkv4.fused_recurrent.fused_recurrent_rwkv4",
            "ops.utils.csr.prepare_block_csr",
            "ops.utils.cumsum.chunk_global_cumsum_scalar",
            "ops.utils.cumsum.chunk_global_cumsum_vector",
            "ops.utils.cumsum.chunk_local_cumsum",
            "ops.utils.cumsum.chunk_local_cumsum_scalar",
            "ops.utils.cumsum.chunk_local_cumsum_vector",
            "ops.utils.logsumexp.logsumexp_fwd",
            "ops.utils.matmul.addmm",
            "ops.utils.matmul.matmul",
            "ops.utils.pack.pack_sequence",
            "ops.utils.pack.unpack_sequence",
            "ops.utils.pooling.mean_pooling",
            "ops.utils.sinkhorn.ops.sinkhorn",
            "ops.utils.softmax.softmax_bwd",
            "ops.utils.softmax.softmax_fwd",
            "ops.utils.solve_tril.solve_tril",
            "ops.wall_attn.decode.parallel_wall_attn_decode",
        ),
        "no layer calls it; compared with its definition on a CPU",
    ),
    "layers.rodimus.autocast_to_fp16": "PyTorch in fla, no kernel",
    "models.cat.modeling_cat.create_block_mask_compiled": "PyTorch's own, no kernel of fla",
    "models.cat.modeling_cat.flex_attention_compiled": "PyTorch's own, no kernel of fla",
}
"""Operators of the table with no Triton kernel to compare with. Nor have methods of classes."""
INDEX, COUNT = map(int, os.environ.get("PARITY_SHARD", "0/1").split("/"))


def runs() -> Iterator[Any]:
    """Every case with each of its layouts and precisions, or the part of it for this process."""
    # what training uses comes first, should time run out
    for dtype, case in itertools.product(DTYPES, CASES[INDEX::COUNT]):
        for layout in case.layouts:
            name = f"{case.name}-{layout}-{dtype}"
            yield pytest.param(case, layout, dtype, id=name, marks=needs_triton)


def write_report(rows: list[dict[str, Any]]) -> None:
    if path := os.environ.get("PARITY_REPORT"):
        report(path, rows)


def attempt(
    case: Case, layout: str, dtype: str, of: str, function: Any, arguments: Arguments
) -> Tensors:
    """What a function gives; its exception is a failure that says where it comes from."""
    try:
        found = evaluate(function, arguments, case, dtype)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return found
    except Exception as error:
        why = f"{of} raised {where_raised(error)}"
    fail(case, layout, dtype, why)


def fail(case: Case, layout: str, dtype: str, why: str) -> NoReturn:
    write_report([{"operator": case.name, "layout": layout, "dtype": dtype, "outcome": why}])
    message = f"{case.name} {dtype} {layout}: {why}"
    if DEVICE == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            pytest.exit(f"no kernel runs in this process any more since {message}", returncode=3)
    pytest.fail(message, pytrace=False)


@pytest.mark.parametrize(("case", "layout", "dtype"), runs())
def test_fla_and_ours_agree(triton, case: Case, layout: str, dtype: str):
    place = (case, layout, dtype)
    arguments = arguments_of(case, LAYOUTS[layout], dtype, DEVICE)
    theirs = resolve(f"fla.{case.operator}")
    ours = resolve(f"flame_accel.kernels.{REPLACEMENTS[case.operator]}")
    ours = bind_to_fla_signature_refusing_unsupported_arguments(
        case.operator.rpartition(".")[2], theirs, ours, check_arguments
    )
    reference = attempt(*place, "ours in fp32", ours, widened(arguments))
    if dtype in case.refusals:
        with pytest.raises(Exception, match=case.refusals[dtype]):
            evaluate(theirs, arguments, case, dtype)
        why = f"refused by fla, as expected: {case.refusals[dtype]}"
        write_report([{"operator": case.name, "layout": layout, "dtype": dtype, "outcome": why}])
        return
    found = {"fla": attempt(*place, "fla", theirs, arguments), "ours": reference}
    if dtype != "fp32":
        found["ours"] = attempt(*place, "ours", ours, arguments)
    findings = [f for of, x in found.items() for f in compare(*place, of, x, reference)]
    write_report([finding._asdict() for finding in findings])
    wrong = [str(finding) for finding in findings if finding.error > finding.tolerance]
    wrong += [
        f"{name}: {x.dtype} of fla, {found['ours'][name].dtype} of ours"
        for name, x in found["fla"].items()
        if name in found["ours"] and found["ours"][name].dtype not in (x.dtype, torch.float32)
    ]
    if wrong:
        rest = [f"{f.of} {f.tensor} {f.error:.1e}" for f in findings if f.error <= f.tolerance]
        pytest.fail("\n".join([*wrong, f"within tolerance: {', '.join(rest)}"]), pytrace=False)


LEAK_LAWS = [
    pytest.param(name, marks=needs_triton)
    for name in ("gla", "delta_net", "gated_deltanet", "kda", "transformer")[INDEX::COUNT]
]


@pytest.mark.skipif(INTERPRETED, reason="bfloat16 autocast is for GPUs")
@pytest.mark.parametrize("model_type", LEAK_LAWS)
def test_packed_documents_stay_apart_to_the_bit(triton, model_type: str):
    config = tiny_config(model_type, hidden_size=128, head_dim=64)
    model: Any = build_model(
        config, vocabulary_size=VOCABULARY_SIZE, bos_token_id=None, eos_token_id=None, seed=0
    )
    check_keeps_documents_apart(model.to(DEVICE))


def test_every_served_operator_has_a_case_or_a_reason():
    methods = {path for path in REPLACEMENTS if path.split(".")[-2][0].isupper()}
    assert {case.operator for case in CASES} | UNCOMPARED.keys() == REPLACEMENTS.keys() - methods


def test_packed_documents_are_for_operators_that_take_boundaries():
    packed = {case.operator for case in CASES if any(LAYOUTS[x].edges for x in case.layouts)}
    functions = {path: resolve(f"fla.{path}") for path in packed}
    taken = {path: inspect.signature(function).parameters for path, function in functions.items()}
    assert {path for path, parameters in taken.items() if "cu_seqlens" not in parameters} == set()
