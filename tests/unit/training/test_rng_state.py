"""The states of the random number generators survive JSON, bit for bit."""

import json
import random

import numpy as np
import pytest
import torch

from flame_accel.training.rng_state import get_all_rng_states_as_json, set_all_rng_states


@pytest.fixture(autouse=True)
def restored_generators():
    before = get_all_rng_states_as_json()
    yield
    set_all_rng_states(before)


def draw() -> list[float]:
    """Numbers of every generator; the normal ones of Python and NumPy leave a cached second."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.standard_normal(),
        torch.rand(()).item(),
        torch.randn(()).item(),
    ]


def test_a_state_that_went_through_json_draws_the_same_numbers():
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        draw()
        state = json.loads(json.dumps(get_all_rng_states_as_json()))
        expected = [draw() for _ in range(3)]
        assert [draw() for _ in range(3)] != expected
        set_all_rng_states(state)
        assert [draw() for _ in range(3)] == expected


def test_reading_the_state_draws_nothing():
    assert get_all_rng_states_as_json() == get_all_rng_states_as_json()


def test_a_state_with_a_generator_of_cuda_restores_the_others_without_it():
    state = get_all_rng_states_as_json()
    expected = draw()
    set_all_rng_states({**state, "cuda": state["torch"]})
    assert draw() == expected
