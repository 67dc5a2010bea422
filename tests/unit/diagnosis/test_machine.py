"""The facts about a machine, collected without side effects."""

from types import SimpleNamespace

import pytest
import torch

from flame_accel import kernels
from flame_accel.diagnosis.machine import (
    Device,
    collect_machine_facts,
    find_torch_platform_and_devices,
    query_driver_version_and_gpu_count_by_nvml,
)
from tests.helpers.machines import GIB


def test_looking_at_this_machine_starts_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("started a program"))
    machine = collect_machine_facts("auto", {"the run": tmp_path / "not" / "yet"})
    assert machine.versions["torch"] is not None
    assert machine.cores >= 1 and machine.memory_bytes > GIB // 2
    assert machine.kernels == ("triton" if kernels.triton_has_device() else "torch")
    assert machine.folders[0].writable and machine.folders[0].free_bytes > 0
    assert collect_machine_facts("torch", {}).kernels == "torch"
    assert torch.cuda.is_initialized() is False


@pytest.mark.parametrize("hip", [None, "7.1"])
def test_devices_are_described_as_torch_sees_them(hip, monkeypatch):
    properties = SimpleNamespace(name="GPU", total_memory=8 * GIB, major=9, minor=0)
    module = SimpleNamespace(
        get_device_properties=lambda index: properties, mem_get_info=lambda index: (GIB, 8 * GIB)
    )
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    kind, devices = find_torch_platform_and_devices(query_free_memory=False)
    expected = Device(
        name="GPU", memory_bytes=8 * GIB, free_bytes=None, capability=None if hip else (9, 0)
    )
    assert kind == ("hip" if hip else "cuda") and devices == (expected, expected)
    assert find_torch_platform_and_devices(query_free_memory=True)[1][0].free_bytes == GIB


def missing_library(name):
    raise OSError(name)


def test_the_driver_answers_with_its_version_and_number_of_gpus(monkeypatch):
    def write_version(buffer, length):
        buffer.value = b"570.86"

    def write_count(reference):
        reference._obj.value = 2

    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlSystemGetDriverVersion=write_version,
        nvmlDeviceGetCount_v2=write_count,
        nvmlShutdown=lambda: 0,
    )
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    assert query_driver_version_and_gpu_count_by_nvml() == ("570.86", 2)
    # a driver that does not start, and none at all
    library.nvmlInit_v2 = lambda: 1
    assert query_driver_version_and_gpu_count_by_nvml() == (None, 0)
    monkeypatch.undo()
    monkeypatch.setattr("ctypes.CDLL", missing_library)
    assert query_driver_version_and_gpu_count_by_nvml() == (None, 0)
