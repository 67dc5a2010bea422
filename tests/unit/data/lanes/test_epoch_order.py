"""Laws of an epoch's order: a permutation, another one for each seed and epoch, and fair."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.data.lanes.epoch_order import EpochOrder


def epoch(num_documents: int, seed: int = 0, number: int = 0) -> list[int]:
    order = EpochOrder(num_documents=num_documents, seed=seed)
    return [order.document_index_at(number, position) for position in range(num_documents)]


@given(st.integers(1, 700), st.integers(0, 2**63), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_document_once_per_epoch(num_documents: int, seed: int, number: int) -> None:
    assert sorted(epoch(num_documents, seed, number)) == list(range(num_documents))


@pytest.mark.parametrize("num_documents", [255, 256, 257, 1024, 1025])
def test_every_document_once_where_the_number_of_bits_changes(num_documents: int) -> None:
    assert sorted(epoch(num_documents)) == list(range(num_documents))


@given(st.integers(1, 2**63), st.integers(0, 2**63), st.integers(0, 1000), st.data())
@settings(max_examples=100, deadline=None)
def test_many_positions_at_once_are_those_one_by_one(
    num_documents: int, seed: int, number: int, data: st.DataObject
) -> None:
    order = EpochOrder(num_documents=num_documents, seed=seed)
    start = data.draw(st.integers(0, num_documents - 1), label="start")
    step = data.draw(st.integers(1, max(1, num_documents // 4)), label="step")
    positions = range(start, num_documents, step)[:100]
    expected = [order.document_index_at(number, position) for position in positions]
    assert order.document_indices_at(number, positions) == expected
    assert all(type(index) is int for index in order.document_indices_at(number, positions))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch(100, seed, number)) for seed in range(5) for number in range(5)}
    assert len(orders) == 25


def test_any_position_of_a_huge_epoch_is_there_at_once() -> None:
    order = EpochOrder(num_documents=10**12, seed=3)
    assert (
        len({order.document_index_at(0, position) for position in range(0, 10**12, 10**10)}) == 100
    )


@pytest.mark.parametrize("num_documents", [3, 20, 300])
def test_a_document_is_as_likely_at_any_position(num_documents: int) -> None:
    draws = 100 * num_documents
    order = EpochOrder(num_documents=num_documents, seed=1)
    positions = [order.document_index_at(number, 1) for number in range(draws)]
    counts = np.bincount(positions, minlength=num_documents)
    chi_square = float(((counts - 100) ** 2 / 100).sum())
    # mean n - 1, standard deviation sqrt(2 (n - 1)): five of them are far out
    freedom = num_documents - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_neighbours_of_one_epoch_are_apart_in_the_next() -> None:
    first, second = epoch(500, number=0), epoch(500, number=1)
    place = {document: position for position, document in enumerate(second)}
    distances = [abs(place[a] - place[b]) for a, b in pairwise(first)]
    # two random places among n are n / 3 apart on average
    assert 500 / 3 * 0.85 < np.mean(distances) < 500 / 3 * 1.15
