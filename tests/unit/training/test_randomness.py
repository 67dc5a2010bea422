"""Seeding a process: what is repeatable, and what differs between ranks."""

import os
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from flame_accel.config import TrainingConfig
from flame_accel.training import seed_process_and_set_determinism
from tests.helpers.runs import SHORT_RUN, read_records


@pytest.fixture
def single_process():
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True)
    yield
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.usefixtures("single_process")
def test_the_same_seed_draws_the_same_numbers_and_another_seed_others():
    seed_process_and_set_determinism(TrainingConfig(seed=3))
    first = draw()
    seed_process_and_set_determinism(TrainingConfig(seed=3))
    assert draw() == first
    seed_process_and_set_determinism(TrainingConfig(seed=4))
    assert all(a != b for a, b in zip(draw(), first, strict=True))


@pytest.mark.usefixtures("single_process")
def test_ranks_draw_different_numbers(monkeypatch):
    seed_process_and_set_determinism(TrainingConfig(seed=3))
    rank_0 = draw()
    monkeypatch.setitem(PartialState._shared_state, "process_index", 1)
    seed_process_and_set_determinism(TrainingConfig(seed=3))
    assert all(a != b for a, b in zip(draw(), rank_0, strict=True))


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_used_where_asked_for(monkeypatch, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seed_process_and_set_determinism(TrainingConfig(deterministic=deterministic))
    assert torch.are_deterministic_algorithms_enabled() is deterministic


@pytest.mark.covers_option("training.deterministic")
def test_a_deterministic_run_configures_torch_and_cublas(train_here, flags, tmp_path, monkeypatch):
    seen = []
    # set first, so that what the run sets is undone
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(
        "flame_accel.train.train",
        lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()),
    )
    monkeypatch.setattr("flame_accel.train.export_and_sample", lambda *_: None)
    try:
        for deterministic in (False, True):
            folder = {"job.dump_folder": tmp_path / str(deterministic)}
            train_here(flags(**folder, **{"training.deterministic": deterministic}))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert seen == [False, True]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.covers_option("training.seed")
def test_the_seed_decides_initial_weights_and_data_order(train_here, flags, tmp_path):
    def first_loss(name: str, seed: int) -> float:
        train_here(
            flags(**SHORT_RUN, **{"job.dump_folder": tmp_path / name, "training.seed": seed})
        )
        return read_records(tmp_path / name)[0]["train/loss"]

    assert first_loss("one", 1) == first_loss("again", 1) != first_loss("two", 2)
