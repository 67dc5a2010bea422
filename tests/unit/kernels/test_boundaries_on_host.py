"""Boundaries known on the host: the same indices as fla computes, without asking the device."""

import gc

import pytest
import torch
from fla.modules.token_shift import prepare_maxlens
from fla.ops.utils import index
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flame_accel.kernels import boundaries_on_host
from flame_accel.kernels.boundaries_on_host import (
    find_known_boundaries,
    has_known_boundaries,
    longest_document_remembering_boundaries,
    remember_boundaries,
    view_padded_boundaries,
    wrap_get_max_num_splits,
    wrap_prepare_chunk_indices,
    wrap_prepare_maxlens,
    wrap_prepare_position_ids,
)
from flame_accel.training import batch_to_device_with_host_boundaries

DOCUMENTS = {
    "one": [0, 300],
    "ragged": [0, 1, 65, 129, 192, 500],
    "with an empty one": [0, 64, 64, 100],
}


class NothingIsRead(TorchDispatchMode):
    """Fails where the host reads a number of a tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default
        if function is torch.ops.aten.repeat_interleave.Tensor:
            assert (kwargs or {}).get("output_size") is not None
        return function(*args, **(kwargs or {}))


def never(*args: object, **kwargs: object) -> Tensor:
    raise AssertionError("fla's own function was asked")


def known(boundaries: list[int]) -> Tensor:
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
    remember_boundaries(cu_seqlens, boundaries)
    return cu_seqlens


@pytest.mark.parametrize("boundaries", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("chunk_size", [1, 16, 64])
def test_chunks_are_those_of_fla(boundaries, chunk_size):
    cu_seqlens = known(boundaries)
    with NothingIsRead():
        found = wrap_prepare_chunk_indices(never)(cu_seqlens, chunk_size)
        splits = wrap_get_max_num_splits(never)(cu_seqlens, chunk_size)
    expected = index.prepare_chunk_indices(cu_seqlens, chunk_size)
    assert torch.equal(found, expected) and found.dtype == expected.dtype
    assert splits == index.get_max_num_splits(cu_seqlens, chunk_size)
    assert wrap_prepare_chunk_indices(never)(cu_seqlens, chunk_size) is found


@pytest.mark.parametrize("boundaries", DOCUMENTS.values(), ids=DOCUMENTS)
def test_positions_are_those_of_fla(boundaries):
    cu_seqlens = known(boundaries)
    with NothingIsRead():
        found = wrap_prepare_position_ids(never)(cu_seqlens)
        longest = wrap_prepare_maxlens(never)(cu_seqlens)
    assert longest == prepare_maxlens(cu_seqlens)
    expected = index.prepare_position_ids(cu_seqlens)
    assert torch.equal(found, expected) and found.dtype == expected.dtype


def test_unknown_boundaries_are_left_to_fla():
    cu_seqlens = torch.tensor([0, 3, 70])
    for wrap in (wrap_prepare_chunk_indices, wrap_get_max_num_splits):
        assert wrap(lambda *args, **kwargs: "fla's")(cu_seqlens, 64) == "fla's"
    assert wrap_prepare_position_ids(lambda *args: "fla's")(cu_seqlens) == "fla's"
    assert wrap_prepare_maxlens(lambda cu_seqlens: -1)(cu_seqlens) == -1
    assert not has_known_boundaries(cu_seqlens=cu_seqlens)
    assert not has_known_boundaries(torch.zeros(2))
    assert longest_document_remembering_boundaries(cu_seqlens) == 67


def test_nothing_is_kept_of_a_batch_that_is_gone():
    cu_seqlens = known([0, 5, 9])
    wrap_prepare_chunk_indices(never)(cu_seqlens, 4)
    assert has_known_boundaries(cu_seqlens=cu_seqlens)
    before = len(boundaries_on_host._KNOWN)
    del cu_seqlens
    gc.collect()
    assert len(boundaries_on_host._KNOWN) == before - 1


def test_a_batch_on_a_device_has_known_boundaries():
    batch = {
        "input_ids": torch.zeros(1, 9, dtype=torch.int64),
        "cu_seqlens": torch.tensor([0, 4, 9], dtype=torch.int32),
    }
    moved = batch_to_device_with_host_boundaries(batch, torch.device("meta"))["cu_seqlens"]
    found = find_known_boundaries(moved)
    assert found is not None and found.numbers == (0, 4, 9) and found.longest == 5


@pytest.mark.parametrize("boundaries", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("chunk_size", [16, 64])
def test_padded_documents_have_the_same_chunks_and_empty_ones(boundaries, chunk_size):
    tokens = boundaries[-1]
    padded = torch.tensor([*boundaries, *[tokens] * (16 + 1 - len(boundaries))], dtype=torch.int32)
    view = view_padded_boundaries(padded, tokens=tokens, longest=400)
    with NothingIsRead():
        found = wrap_prepare_chunk_indices(never)(view, chunk_size)
        splits = wrap_get_max_num_splits(never)(view, chunk_size)
        positions = wrap_prepare_position_ids(never)(view)
    expected = index.prepare_chunk_indices(torch.tensor(boundaries, dtype=torch.int32), chunk_size)
    assert torch.equal(found[: len(expected)], expected) and found.dtype == expected.dtype
    assert found[len(expected) :].tolist() == [[15, 0]] * (len(found) - len(expected))
    assert len(found) == tokens // chunk_size + 16 >= len(expected)
    assert splits == -(-400 // chunk_size) and longest_document_remembering_boundaries(view) == 400
    assert torch.equal(positions, index.prepare_position_ids(padded))
