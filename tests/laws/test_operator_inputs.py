"""Laws of all operators that we replace, and models: empty documents, inputs in any layout."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from flame_accel.models.catalogue import VOCABULARY_SIZE, fla_config_classes, tiny_config
from tests.helpers.gradients import assert_close, flatten, outputs_and_gradients
from tests.helpers.parity import Arguments, Case, Draw, Layout, resolve
from tests.helpers.parity_cases_attention import ATTENTION
from tests.helpers.parity_cases_delta import DELTA_RULES
from tests.helpers.parity_cases_modules import MODULES
from tests.helpers.parity_cases_recurrence import RECURRENCES

CASES = (*RECURRENCES, *DELTA_RULES, *ATTENTION, *MODULES)
EDGES = (0, 0, 0, 5, 5, 12, 12)
DOCUMENTS = len(EDGES) - 1
"""No other dimension of the cases has this size."""
HELD, EMPTY = torch.tensor([2, 4]), torch.tensor([0, 1, 3, 5])
"""Documents that hold tokens, and the others."""
ONE_ROW = ("attn_decoding_one_step",)
STATES = ("initial_state", "initial_A_state", "cache")


def function_of(case: Case) -> Callable[..., Any]:
    return resolve(f"fla.{case.operator}")


def packs(case: Case) -> bool:
    return "cu_seqlens" in inspect.signature(function_of(case)).parameters


def document_dimension(x: Any) -> int | None:
    """The dimension that has an entry for each document."""
    found = [d for d, size in enumerate(getattr(x, "shape", ())) if size == DOCUMENTS]
    return found[0] if found else None


def split_leaves(case: Case, arguments: Arguments) -> tuple[dict[str, Tensor], Arguments]:
    """Those with a gradient, and the others."""
    leaves = {
        name: x
        for name, x in arguments.items()
        if isinstance(x, Tensor) and x.is_floating_point() and name not in case.fixed
    }
    return leaves, {name: x for name, x in arguments.items() if name not in leaves}


@pytest.mark.parametrize("case", filter(packs, CASES), ids=lambda case: case.name)
def test_empty_documents_change_nothing_and_hand_their_state_on(case: Case):
    layout = Layout(1, EDGES[-1], EDGES)
    arguments = case.build(Draw(layout, torch.Generator().manual_seed(0)))
    leaves, others = split_leaves(case, arguments)
    function = function_of(case)

    def run(edges: list[int], documents: Tensor) -> list[Tensor]:
        """Results of the documents, and the gradients of their sum."""

        def call(*tensors: Tensor) -> list[Tensor]:
            given = {
                name: x if (d := document_dimension(x)) is None else x.index_select(d, documents)
                for name, x in (dict(zip(leaves, tensors, strict=True)) | others).items()
            }
            given["cu_seqlens"] = torch.tensor(edges)
            results = flatten(case.call(function, given))
            return [
                x if (d := document_dimension(x)) is None else x.index_select(d, HELD)
                for x in results
                if isinstance(x, Tensor) and x.is_floating_point()
            ]

        return outputs_and_gradients(call, [*leaves.values()], unused_inputs=True)

    found = run([*EDGES], torch.arange(DOCUMENTS))
    assert_close(found, run([0, 5, 12], HELD), 1e-5, 1e-6)


@pytest.mark.parametrize("case", filter(packs, CASES), ids=lambda case: case.name)
def test_empty_documents_hand_their_state_on(case: Case):
    layout = Layout(1, EDGES[-1], EDGES)
    arguments = case.build(Draw(layout, torch.Generator().manual_seed(0)))
    results = flatten(case.call(function_of(case), arguments | {"cu_seqlens": torch.tensor(EDGES)}))
    before = {arguments[name].shape: arguments[name] for name in STATES if name in arguments}
    for state in results:
        d = document_dimension(state)
        if d is not None and state.shape in before:
            handed_on = state.index_select(d, EMPTY)
            assert torch.equal(handed_on, before[state.shape].index_select(d, EMPTY))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_do_not_depend_on_the_layout_of_memory(case: Case):
    layout = Layout(1, 12, (0, 5, 12)) if case.operator.endswith(ONE_ROW) else Layout(2, 12)
    arguments = case.build(Draw(layout, torch.Generator().manual_seed(0)))
    if layout.edges:
        arguments["cu_seqlens"] = torch.tensor(layout.edges)
    leaves, others = split_leaves(case, arguments)
    function = function_of(case)

    def run(arrange: Callable[[Tensor], Tensor]) -> list[Tensor]:
        given = {
            name: arrange(x.detach()).requires_grad_(not case.forward_only)
            for name, x in leaves.items()
        }
        results = [x for x in flatten(case.call(function, others | given)) if x is not None]
        outputs = [x for x in results if x.requires_grad]
        torch.manual_seed(0)
        directions = [arrange(torch.randn(x.shape).to(x)) for x in outputs]
        if not outputs:
            return results
        wanted = [*given.values()]
        return [
            *results,
            *torch.autograd.grad(outputs, wanted, directions, materialize_grads=True),
        ]

    assert_close(run(reversed_in_memory), run(torch.Tensor.contiguous), 1e-5, 1e-6)


@pytest.mark.parametrize("model_type", sorted(fla_config_classes().keys() - {"cat"}))
def test_empty_documents_change_nothing_of_a_model(model_type: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).float().eval()
    tokens = torch.randint(0, VOCABULARY_SIZE, (1, EDGES[-1]))

    def run(edges: list[int]) -> list[Tensor]:
        boundaries = torch.tensor(edges, dtype=torch.int32)
        loss = model(tokens, labels=tokens, cu_seqlens=boundaries, use_cache=False).loss
        parameters = [*model.parameters()]
        return [loss, *torch.autograd.grad(loss, parameters, materialize_grads=True)]

    assert_close(run([*EDGES]), run([0, 5, 12]), 1e-4, 1e-6)


def reversed_in_memory(x: Tensor) -> Tensor:
    """The same values, the first dimension innermost, between others that do not count."""
    room = torch.full((*x.shape[::-1], 2), 9.0, dtype=x.dtype)[..., 0]
    return room.permute([*range(x.dim())][::-1]).copy_(x)
