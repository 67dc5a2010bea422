"""The states of a process's random number generators as JSON: Python, NumPy, torch and CUDA."""

import base64
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def get_rng_state() -> dict[str, Any]:
    """The states of this process's random number generators, JSON-able."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": _to_base64(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _to_base64(torch.cuda.get_rng_state())
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Sets the generators to a state that `get_rng_state` returned."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(numbers, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_from_base64(state["torch"]))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(_from_base64(state["cuda"]))


def _to_base64(tensor: Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode("ascii")


def _from_base64(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
