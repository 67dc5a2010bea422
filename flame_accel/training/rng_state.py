"""The states of a process's random number generators as JSON: Python, NumPy, torch and CUDA."""

import base64
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def get_all_rng_states_as_json() -> dict[str, Any]:
    """The states of this process's random number generators, JSON-able."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": _bytes_to_base64(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = _bytes_to_base64(torch.cuda.get_rng_state())
    return states


def set_all_rng_states(states: dict[str, Any]) -> None:
    """Sets the generators to the states that `get_all_rng_states_as_json` returned."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(numbers, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_base64_to_bytes(states["torch"]))
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(_base64_to_bytes(states["cuda"]))


def _bytes_to_base64(tensor: Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode("ascii")


def _base64_to_bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
