"""Questions about a machine that rows of the table of problems ask: pure functions of its facts."""

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from flame_accel.diagnosis.machine import Device, Machine


def is_package_older(machine: Machine, package: str, than: str) -> bool:
    """Whether an installed package is older than a version."""
    version = machine.versions[package]
    return version is not None and Version(version) < Version(than)


def is_package_newer_than_minor(machine: Machine, package: str, than: str) -> bool:
    """Whether an installed package is newer than every patch of a version `major.minor`."""
    version = machine.versions[package]
    return version is not None and Version(version).release[:2] > Version(than).release


def uses_triton(machine: Machine) -> bool:
    """Whether fla's own kernels run here."""
    return machine.kernels == "triton"


def has_miscompiling_triton_on_hopper(machine: Machine) -> bool:
    """Where fla refuses its gated backward: `chunk_bwd_dqkwg` in `fla/ops/common/chunk_o.py`."""
    first = machine.devices[0].capability if machine.devices else None
    bad = is_package_older(machine, "triton", "3.7.1") and not is_package_older(
        machine, "triton", "3.4.0"
    )
    return uses_triton(machine) and bad and first is not None and first[0] == 9


def has_tilelang_and_nvcc(machine: Machine) -> bool:
    """Whether fla can call tilelang, which needs a CUDA compiler."""
    return machine.versions["tilelang"] is not None and machine.nvcc


def devices_without_torch_kernels(machine: Machine) -> list[Device]:
    """Devices that none of torch's own kernels was compiled for, nor for a relative.

    Machine code (`sm_90`) runs on newer devices of its major version, PTX (`compute_90`) on all.
    """
    compiled = [name.partition("_") for name in machine.architectures]
    known = [(kind, divmod(int(code.rstrip("af")), 10)) for kind, _, code in compiled]
    return [
        device
        for device in machine.devices
        if (capability := device.capability) is not None
        and not any(
            code <= capability and (kind == "compute" or code[0] == capability[0])
            for kind, code in known
        )
    ]


def devices_below_ampere(machine: Machine) -> list[Device]:
    """Devices of a compute capability below 8.0."""
    return [
        device for device in machine.devices if device.capability and device.capability < (8, 0)
    ]


def devices_with_memory_in_use(machine: Machine) -> list[Device]:
    """Devices with less than 80% of their memory free."""
    return [
        device
        for device in machine.devices
        if device.free_bytes is not None and device.free_bytes < 0.8 * device.memory_bytes
    ]


def torch_sees_none_of_unhidden_driver_gpus(machine: Machine) -> bool:
    """Whether NVIDIA's driver has GPUs that torch does not see, and nobody hid them."""
    return machine.platform == "cpu" and machine.driver_devices > 0 and not machine.hidden_devices


def has_mismatched_triton(machine: Machine) -> bool:
    """Whether torch asks for another Triton than there is."""
    wanted, version = machine.triton_required_by_torch, machine.versions["triton"]
    if wanted is None or version is None:
        return False
    return not SpecifierSet(wanted).contains(version, prereleases=True)


def join_sorted_unique_device_names(devices: list[Device]) -> str:
    """The names of the devices as their maker gives them, sorted, each once, joined by commas."""
    return ", ".join(sorted({device.name for device in devices}))
