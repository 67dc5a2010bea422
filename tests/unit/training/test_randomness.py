"""Seeding a process: what is repeatable, and what differs between ranks."""

import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from flame_accel.config import TrainingConfig
from flame_accel.training import seed_process


@pytest.fixture(autouse=True)
def single_process():
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True)
    yield
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_the_same_seed_draws_the_same_numbers_and_another_seed_others():
    seed_process(TrainingConfig(seed=3))
    first = draw()
    seed_process(TrainingConfig(seed=3))
    assert draw() == first
    seed_process(TrainingConfig(seed=4))
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_ranks_draw_different_numbers(monkeypatch):
    seed_process(TrainingConfig(seed=3))
    rank_0 = draw()
    monkeypatch.setitem(PartialState._shared_state, "process_index", 1)
    seed_process(TrainingConfig(seed=3))
    assert all(a != b for a, b in zip(draw(), rank_0, strict=True))


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_used_where_asked_for(monkeypatch, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seed_process(TrainingConfig(deterministic=deterministic))
    assert torch.are_deterministic_algorithms_enabled() is deterministic
