"""Laws of recurrent operators with several states, as tests of a class that names an operator.

Outputs, final states and all gradients equal those of a token-by-token reference; packed documents
equal separate ones; one token at a time equals one call.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.helpers.gradients import assert_close, outputs_and_gradients
from tests.helpers.recurrence import LENGTHS, boundaries

H, K, V = 2, 8, 6
"""Heads, key width and value width."""

Tensors = list[Tensor]
Result = tuple[Tensor, Tensors]


class Operator(NamedTuple):
    """An operator and its reference, both from inputs per token, parameters and states."""

    inputs: Callable[[int, int], Tensors]
    """Inputs [n, t, ...] for n sequences of t tokens."""
    parameters: Callable[[], Tensors]
    states: Callable[[int], Tensors]
    """Initial states [n, ...]."""
    run: Callable[..., Result]
    """(inputs, parameters, states, cu_seqlens) -> outputs, final states."""
    reference: Callable[..., Result]
    """(inputs, parameters, states) -> outputs, final states."""


def log_decay(*shape: int) -> Tensor:
    """Mostly gentle, some steep."""
    return -6 * torch.rand(*shape) ** 4


def _results_and_gradients(function: Callable[..., Result], groups: list[Tensors]) -> Tensors:
    """Outputs, final states and gradients of a function of the groups of tensors."""
    sizes = [len(group) for group in groups]

    def call(*tensors: Tensor) -> Result:
        rest = iter(tensors)
        return function(*([next(rest) for _ in range(size)] for size in sizes))

    return outputs_and_gradients(call, [x for group in groups for x in group])


class OperatorLaws:
    """Tests of the operator that a derived class names."""

    operator: Operator

    def draw(self, batch: int, tokens: int, sequences: int | None = None) -> list[Tensors]:
        """Inputs, parameters and states; of a packed row, `sequences` have states."""
        op, number = self.operator, batch if sequences is None else sequences
        return [op.inputs(batch, tokens), op.parameters(), op.states(number)]

    @pytest.mark.parametrize("tokens", [1, 5, 64, 65, 150])
    def test_equals_its_recurrence(self, tokens: int) -> None:
        torch.manual_seed(tokens)
        groups = self.draw(2, tokens)
        assert_close(
            _results_and_gradients(self.operator.run, groups),
            _results_and_gradients(self.operator.reference, groups),
        )

    def test_packed_documents_equal_separate_ones(self) -> None:
        torch.manual_seed(0)
        run = self.operator.run

        def packed(x: Tensors, p: Tensors, h: Tensors) -> Result:
            return run(x, p, h, boundaries())

        def separate(x: Tensors, p: Tensors, h: Tensors) -> Result:
            documents = zip(*(y.split(LENGTHS, 1) for y in x), strict=True)
            pasts = zip(*(y.split(1) for y in h), strict=True)
            results = [run(d, p, past) for d, past in zip(documents, pasts, strict=True)]
            finals = zip(*(states for _, states in results), strict=True)
            return torch.cat([o for o, _ in results], 1), [torch.cat(y) for y in finals]

        groups = self.draw(1, sum(LENGTHS), len(LENGTHS))
        assert_close(
            _results_and_gradients(packed, groups), _results_and_gradients(separate, groups), 1e-5
        )

    def test_a_document_keeps_its_bits_whatever_its_neighbours(self) -> None:
        torch.manual_seed(0)
        x, p, h = self.draw(1, sum(LENGTHS), len(LENGTHS))
        o, _ = self.operator.run(x, p, h, boundaries())
        first, last = 41, 134
        other = self.operator.inputs(1, sum(LENGTHS))
        mixed = [
            torch.cat((b[:, :first], a[:, first:last], b[:, last:]), 1)
            for a, b in zip(x, other, strict=True)
        ]
        changed, _ = self.operator.run(mixed, p, h, boundaries())
        assert not torch.equal(changed[:, :first], o[:, :first])
        assert torch.equal(changed[:, first:last], o[:, first:last])

    def test_token_by_token_equals_one_call(self) -> None:
        torch.manual_seed(0)
        x, p, h = self.draw(2, 70)
        expected, finals = self.operator.run(x, p, h)
        outputs = []
        for t in range(70):
            o, h = self.operator.run([y[:, t : t + 1] for y in x], p, h)
            outputs.append(o)
        assert_close([torch.cat(outputs, 1), *h], [expected, *finals])

    def test_dtypes_are_kept_under_autocast(self) -> None:
        """Outputs have the dtype of queries, keys and values, the first inputs; states are fp32."""
        torch.manual_seed(0)
        (q, k, v, *rest), p, h = self.draw(1, 70)
        rounded = [x.bfloat16() for x in (q, k, v)]
        expected, finals = self.operator.run([*(x.float() for x in rounded), *rest], p, h)
        with torch.autocast("cpu", torch.bfloat16):
            o, states = self.operator.run([*rounded, *rest], p, h)
        assert o.dtype == torch.bfloat16
        assert all(x.dtype == torch.float32 for x in states)
        assert_close([o.float(), *states], [expected, *finals], 1e-2)
