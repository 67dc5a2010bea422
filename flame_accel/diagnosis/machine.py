"""The facts about a machine that decide what trains on it, as one frozen value.

Collecting them takes milliseconds, starts no other program and, unless free memory is asked for,
opens no context on a GPU. What the facts mean is said in `known_problems`.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub.constants import HF_HOME
from packaging.requirements import Requirement
from torch.cuda import nccl

from flame_accel.cpu_cores import count_cores_in_affinity_mask
from flame_accel.kernels import triton_has_device
from flame_accel.kernels.install import KernelKind
from flame_accel.kernels.tuning import flame_accel_cache_folder

PACKAGES = (
    "torch",
    "triton",
    "flash-linear-attention",
    "transformers",
    "accelerate",
    "datasets",
    "flash-attn",
    "flash-attn-4",
    "flash-qla",
    "mamba-ssm",
    "causal-conv1d",
    "tilelang",
)
"""Distributions whose versions matter; those from flash-attn on are optional."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A GPU that torch sees."""

    name: str
    memory_bytes: int
    free_bytes: int | None
    """None where nobody looked: looking opens a context."""
    capability: tuple[int, int] | None
    """NVIDIA's compute capability; None elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A place that a run writes to; where it does not exist, its nearest parent that does."""

    purpose: str
    path: str
    free_bytes: int
    writable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Everything that the table of known problems looks at."""

    system: str
    python: str
    processor: str
    cores: int
    """That this process may use."""
    memory_bytes: int
    shared_memory_bytes: int | None
    """Free in /dev/shm; None where there is no such folder."""
    platform: str
    """What torch calls its devices: "cuda", "hip", "xpu", or "cpu" without any."""
    devices: tuple[Device, ...]
    driver: str | None
    """Version of NVIDIA's driver; None where it does not answer."""
    driver_devices: int
    """GPUs that NVIDIA's driver knows, whether or not torch sees them."""
    hidden_devices: bool
    """Whether CUDA_VISIBLE_DEVICES hides all of them."""
    cuda: str | None
    """The CUDA that torch was built with."""
    architectures: tuple[str, ...]
    """What torch's own CUDA kernels were compiled for, such as `sm_90`."""
    nccl: str | None
    versions: Mapping[str, str | None]
    """Package of `PACKAGES` -> installed version; None if not installed."""
    triton_required_by_torch: str | None
    """The Triton that torch asks for, as a version specifier; None if it asks for none."""
    kernels: str
    """What serves fla's operators: "triton" or "torch"."""
    compiler: str | None
    """The C compiler that Triton would call for its launchers."""
    python_headers: bool
    """Whether Python.h is where Triton looks for it."""
    ptxas: bool
    """Whether Triton finds NVIDIA's assembler."""
    nvcc: bool
    """Whether there is a CUDA compiler, which tilelang calls."""
    interpreted: bool
    """Whether TRITON_INTERPRET makes Triton run kernels in Python."""
    folders: tuple[Folder, ...]

    @property
    def conformance_device_of_kernels(self) -> str:
        """Device whose conformance results hold here: "cuda" for fla's kernels, else "cpu"."""
        return "cuda" if self.kernels == "triton" else "cpu"


def collect_machine_facts(
    requested_kernels: KernelKind,
    folders_by_purpose: Mapping[str, Path | str],
    *,
    query_free_memory: bool = False,
) -> Machine:
    """Collects the facts.

    Args:
        requested_kernels: as a run asks for them: "auto", "torch" or "triton".
        folders_by_purpose: purpose -> path of what will be written to.
        query_free_memory: whether to ask each GPU how much of its memory is free. It opens a
            context there, which takes a second and some hundred MiB until this process ends.
    """
    driver, driver_devices = query_driver_version_and_gpu_count_by_nvml()
    platform_name, devices = find_torch_platform_and_devices(query_free_memory)
    return Machine(
        system=kernel_name_release_and_architecture(),
        python=platform.python_version(),
        processor=processor_name(),
        cores=count_cores_in_affinity_mask(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        shared_memory_bytes=free_shared_memory_bytes(),
        platform=platform_name,
        devices=devices,
        driver=driver,
        driver_devices=driver_devices,
        hidden_devices=os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
        cuda=torch.version.cuda,
        architectures=tuple(torch.cuda.get_arch_list()) if platform_name == "cuda" else (),
        nccl=nccl_version(),
        versions={name: installed_version(name) for name in PACKAGES},
        triton_required_by_torch=triton_required_by_torch(),
        kernels="triton" if requested_kernels != "torch" and triton_has_device() else "torch",
        compiler=os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"),
        python_headers=has_python_headers(),
        ptxas=has_ptxas_in_triton_or_environment(),
        nvcc=has_nvcc(),
        interpreted=os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"),
        folders=tuple(
            describe_output_folder(purpose, Path(path))
            for purpose, path in folders_by_purpose.items()
        ),
    )


class NvidiaDriver(NamedTuple):
    """What NVIDIA's driver says of itself."""

    version: str | None
    """None where it does not answer."""
    num_gpus: int


def query_driver_version_and_gpu_count_by_nvml() -> NvidiaDriver:
    """Version of NVIDIA's driver and number of its GPUs; (None, 0) where it does not answer."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return NvidiaDriver(None, 0)
    if library.nvmlInit_v2():
        return NvidiaDriver(None, 0)
    version, count = ctypes.create_string_buffer(80), ctypes.c_uint()
    library.nvmlSystemGetDriverVersion(version, len(version))
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    library.nvmlShutdown()
    return NvidiaDriver(version.value.decode(), count.value)


class TorchDevices(NamedTuple):
    """The devices that torch sees."""

    platform: str
    """As in `Machine`."""
    devices: tuple[Device, ...]


def find_torch_platform_and_devices(query_free_memory: bool) -> TorchDevices:
    """What torch calls its devices, and each of them; ("cpu", ()) where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    kind = "cpu" if found is None else found.type
    if kind not in ("cuda", "xpu"):
        return TorchDevices(kind, ())
    module = torch.get_device_module(kind)
    nvidia = kind == "cuda" and torch.version.hip is None
    devices = []
    for number in range(torch.accelerator.device_count()):
        properties = module.get_device_properties(number)
        devices.append(
            Device(
                name=properties.name,
                memory_bytes=properties.total_memory,
                free_bytes=module.mem_get_info(number)[0] if query_free_memory else None,
                capability=(properties.major, properties.minor) if nvidia else None,
            )
        )
    return TorchDevices("hip" if kind == "cuda" and not nvidia else kind, tuple(devices))


def nccl_version() -> str | None:
    """The NCCL that torch was built with."""
    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, nccl.version()))


def installed_version(package: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def triton_required_by_torch() -> str | None:
    """The version specifier in torch's requirement of Triton; None if it has none."""
    for text in importlib.metadata.requires("torch") or ():
        requirement = Requirement(text)
        if requirement.name == "triton" and requirement.specifier:
            return str(requirement.specifier)
    return None


def kernel_name_release_and_architecture() -> str:
    """Name, release and machine type; `platform.platform` would start `uname -p` for its answer."""
    uname = platform.uname()
    return f"{uname.system}-{uname.release}-{uname.machine}"


def processor_name() -> str:
    """The CPU as its maker names it, where the system says so."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def free_shared_memory_bytes() -> int | None:
    """Bytes free in /dev/shm; None where the system has no such folder."""
    path = Path("/dev/shm")
    return shutil.disk_usage(path).free if path.is_dir() else None


def has_python_headers() -> bool:
    """Whether Python.h lies where Triton looks for it."""
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme has no headers; Triton replaces it too
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme)["include"], "Python.h").is_file()


def has_ptxas_in_triton_or_environment() -> bool:
    """Whether NVIDIA's assembler is inside Triton, or where the environment says."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return False
    bundled = Path(spec.origin).parent / "backends/nvidia/bin/ptxas"
    return any(Path(path).is_file() for path in (os.environ.get("TRITON_PTXAS_PATH", ""), bundled))


def has_nvcc() -> bool:
    """Whether a CUDA compiler is where fla and tilelang look for it."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    paths = [Path(home, "bin/nvcc") for home in (*homes, "/usr/local/cuda") if home]
    return shutil.which("nvcc") is not None or any(path.is_file() for path in paths)


def describe_output_folder(purpose: str, path: Path) -> Folder:
    """What can be written at a path, which need not exist yet."""
    nearest = next(
        parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()
    )
    return Folder(
        purpose=purpose,
        path=str(path),
        free_bytes=shutil.disk_usage(nearest).free,
        writable=os.access(nearest, os.W_OK),
    )


def cache_folders_by_purpose() -> dict[str, Path]:
    """Where compiled and tuned kernels are kept, and what Hugging Face's libraries download."""
    triton_home = Path(os.environ.get("TRITON_HOME") or Path.home())
    compiled = os.environ.get("TRITON_CACHE_DIR") or triton_home / ".triton" / "cache"
    return {
        "compiled kernels": Path(compiled),
        "tuned kernels": flame_accel_cache_folder(),
        "downloads": Path(HF_HOME),
    }
