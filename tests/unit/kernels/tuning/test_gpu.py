"""GPUs are told apart by name and by the architecture that kernels are compiled for."""

from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

import torch
from fla.ops.utils import cache

from flame_accel.kernels.tuning import Gpu, detect_gpu_name_and_capability


@pytest.mark.parametrize(
    "hip, properties, capability",
    [
        (None, {"major": 9, "minor": 0}, "sm_90"),
        (None, {"major": 12, "minor": 1}, "sm_121"),
        ("6.4", {"major": 9, "minor": 4, "gcnArchName": "gfx942:sramecc+:xnack-"}, "gfx942"),
    ],
)
def test_the_capability_is_the_architecture(monkeypatch, hip, properties, capability):
    monkeypatch.setattr(cache, "get_gpu_info", lambda: "Imaginary")
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    device = SimpleNamespace(**properties)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    assert detect_gpu_name_and_capability() == Gpu("Imaginary", capability)


def test_a_device_of_no_known_architecture_has_its_name_twice(monkeypatch):
    monkeypatch.setattr(cache, "get_gpu_info", lambda: "Imaginary")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert detect_gpu_name_and_capability() == Gpu("Imaginary", "Imaginary")
