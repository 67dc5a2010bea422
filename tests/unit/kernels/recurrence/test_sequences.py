"""Per-sequence helpers treat packed documents as separate rows would be treated."""

import pytest
import torch

from flame_accel.kernels.recurrence import sequences
from tests.helpers.recurrence import (
    boundaries,
)

LENGTHS = (1, 4, 1, 3)


def row() -> torch.Tensor:
    return torch.arange(1.0, 1 + 2 * sum(LENGTHS)).view(1, -1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shifts_stay_within_documents(dtype):
    x = torch.randn(1, 600, 3).to(dtype)
    lengths = (1, 4, 1, 290, 304)
    cu_seqlens = boundaries(lengths).int()
    for shift in (sequences.value_of_previous_token, sequences.value_of_next_token):
        separate = torch.cat([shift(part, None) for part in x.split(lengths, 1)], 1)
        assert torch.equal(shift(x, cu_seqlens), separate)
    zero = torch.zeros_like(x[:, :1])
    late, early = torch.cat((zero, x[:, :-1]), 1), torch.cat((x[:, 1:], zero), 1)
    assert torch.equal(sequences.value_of_previous_token(x, None), late)
    assert torch.equal(sequences.value_of_next_token(x, None), early)


def test_first_and_last_tokens_of_rows_and_documents():
    x, parts = row(), row().split(LENGTHS, 1)
    first = torch.cat([sequences.first_tokens(part, None) for part in parts])
    last = torch.cat([sequences.last_tokens(part, None) for part in parts])
    assert torch.equal(first, torch.cat([part[:, 0] for part in parts]))
    assert torch.equal(last, torch.cat([part[:, -1] for part in parts]))
    assert torch.equal(sequences.first_tokens(x, boundaries(LENGTHS)), first)
    assert torch.equal(sequences.last_tokens(x, boundaries(LENGTHS)), last)


def test_sums_restart_with_every_document():
    expected = torch.cat([part.cumsum(1) for part in row().split(LENGTHS, 1)], 1)
    assert torch.equal(sequences.cumsum_per_sequence(row(), boundaries(LENGTHS)), expected)
    assert torch.equal(sequences.cumsum_per_sequence(row(), None), row().cumsum(1))


def test_documents_are_counted_and_split():
    assert sequences.count_sequences(3, None) == 3
    assert sequences.count_sequences(1, boundaries(LENGTHS)) == len(LENGTHS)
    parts = sequences.split_sequences(row(), boundaries(LENGTHS))
    assert [part.shape[1] for part in parts] == list(LENGTHS)
    assert torch.equal(torch.cat(parts, 1), row())
    [whole] = sequences.split_sequences(row(), None)
    assert torch.equal(whole, row())


@pytest.mark.parametrize(
    ("num_tokens", "cu_seqlens", "expected"),
    [(1, None, True), (2, None, False), (3, [0, 1, 2, 3], True), (3, [0, 2, 3], False),
     (3, [0, 2, 2, 3], False)],
)  # fmt: skip
def test_single_tokens_are_recognised(num_tokens, cu_seqlens, expected):
    cu_seqlens = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    assert sequences.every_sequence_has_one_token(num_tokens, cu_seqlens) is expected


def test_initial_states_have_the_keys_first_in_fp32():
    q, v = torch.randn(2, 5, 3, 4).bfloat16(), torch.randn(2, 5, 3, 6).bfloat16()
    options = {"q": q, "v": v, "cu_seqlens": None}
    zeros = sequences.fp32_key_first_state_or_zeros(None, state_v_first=True, **options)
    assert zeros.dtype == torch.float32
    assert torch.equal(zeros, torch.zeros(2, 3, 4, 6))
    state = torch.randn(2, 3, 6, 4).bfloat16()
    given = sequences.fp32_key_first_state_or_zeros(state, state_v_first=True, **options)
    assert torch.equal(given, state.float().mT)
    packed = {"q": q[:1], "v": v[:1], "cu_seqlens": torch.tensor([0, 1, 3, 5])}
    zeros = sequences.fp32_key_first_state_or_zeros(None, state_v_first=False, **packed)
    assert torch.equal(zeros, torch.zeros(3, 3, 4, 6))


@pytest.mark.parametrize("packed", [False, True])
def test_reversed_run_equals_flipped_sequences(packed):
    def add_up(x, none, initial_state, cu_seqlens):
        assert none is None
        parts = sequences.split_sequences(x, cu_seqlens)
        states = [initial_state] if cu_seqlens is None else initial_state.split(1)
        outputs = [part.cumsum(1) + s[:, None] for part, s in zip(parts, states, strict=True)]
        return torch.cat(outputs, 1), torch.cat([o[:, -1] for o in outputs])

    cu_seqlens = boundaries(LENGTHS) if packed else None
    state = torch.randn(len(LENGTHS) if packed else 1, 2)
    o, final = sequences.run_operator_from_last_token(add_up, (row(), None), state, cu_seqlens)
    parts = row().split(LENGTHS, 1) if packed else [row()]
    expected = [
        add_up(part.flip(1), None, s, None) for part, s in zip(parts, state.split(1), strict=True)
    ]
    assert torch.equal(o, torch.cat([x.flip(1) for x, _ in expected], 1))
    assert torch.equal(final, torch.cat([s for _, s in expected]))
