"""The table of known problems: when each applies, what goes wrong then, and the remedy.

A row looks at a `Machine` and tests nothing itself, so every row can be tried on invented facts.
Most rows concern every model, some only those made of certain parts of fla. What their conditions
ask lives in `conditions`, which rows apply in `detected_problems`, trying a model out in
`small_model_trial`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from flame_accel.diagnosis.conditions import (
    devices_below_ampere,
    devices_with_memory_in_use,
    devices_without_torch_kernels,
    has_miscompiling_triton_on_hopper,
    has_mismatched_triton,
    has_tilelang_and_nvcc,
    is_package_newer_than_minor,
    is_package_older,
    join_sorted_unique_device_names,
    torch_sees_none_of_unhidden_driver_gpus,
    uses_triton,
)
from flame_accel.diagnosis.machine import Machine

GIB, MIB = 2**30, 2**20
SUPPORTED = {
    "torch": ("2.11", "2.13"),
    "triton": ("3.3", "3.7"),
    "flash-linear-attention": ("0.6.0", "0.6"),
    "transformers": ("5.17", "5.23"),
    "accelerate": ("1.15", "1.15"),
    "datasets": ("5.2", "5.2"),
}
"""Package -> the lowest version that serves, and the newest `major.minor` that was tried."""


class ProblemCheck(NamedTuple):
    """A row of the table."""

    name: str
    blocks_training: bool
    """Whether training is impossible; else it is a warning."""
    applies: Callable[[Machine], bool]
    description: Callable[[Machine], str]
    """What goes wrong and why, in words; asked only where the row applies."""
    remedy: str
    parts: Mapping[str, str | None] | None = None
    """Parts of fla that suffer -> the field of a model config that switches it on; None: all."""


ON_HOPPER = "{0.devices[0].name} with Triton {0.versions[triton]}: from 3.4.0 to 3.7.0 Triton gets "
UPGRADE = (
    "pip install 'torch>=2.13', which brings Triton 3.7.1; or --model.kernels torch, PyTorch "
    "kernels, which are slower"
)


def kernel_problem_checks() -> Iterator[ProblemCheck]:
    """What keeps fla's kernels from compiling, or makes them wrong."""
    yield ProblemCheck(
        "no Triton",
        True,
        lambda machine: machine.versions["triton"] is None,
        lambda machine: "Triton is not installed; fla imports it, even where PyTorch kernels serve",
        "pip install triton, or triton-windows on Windows",
    )
    yield ProblemCheck(
        "gated kernels on Hopper",
        True,
        lambda machine: (
            has_miscompiling_triton_on_hopper(machine) and not has_tilelang_and_nvcc(machine)
        ),
        lambda machine: (
            ON_HOPPER.format(machine)
            + "the gradients of fla's gated delta rules wrong on Hopper, and fla refuses to train"
        ),
        f"{UPGRADE}; or pip install tilelang, where there is nvcc",
        {
            "ops.comba.chunk.chunk_comba": None,
            "ops.gated_delta_product.chunk.chunk_gated_delta_product": "use_forget_gate",
            "ops.gated_delta_rule.chunk.chunk_gated_delta_rule": None,
            "ops.precond_gated_delta_rule.chunk.chunk_precond_gated_delta_rule": None,
        },
    )
    yield ProblemCheck(
        "simple GLA on Hopper",
        True,
        has_miscompiling_triton_on_hopper,
        lambda machine: (
            ON_HOPPER.format(machine)
            + "the gradients of fla's simple GLA wrong on Hopper, and fla refuses to train"
        ),
        UPGRADE,
        {"ops.simple_gla.chunk.chunk_simple_gla": None},
    )
    yield ProblemCheck(
        "no C compiler",
        True,
        lambda machine: uses_triton(machine) and machine.compiler is None,
        lambda machine: "there is no C compiler; Triton compiles a launcher for every kernel",
        "install gcc or clang (apt-get install gcc), or name a compiler in CC",
    )
    yield ProblemCheck(
        "no Python.h",
        True,
        lambda machine: uses_triton(machine) and not machine.python_headers,
        lambda machine: "Python's headers are missing; Triton's launchers include Python.h",
        "apt-get install python3-dev, or use a Python that comes with its headers",
    )
    yield ProblemCheck(
        "no ptxas",
        True,
        lambda machine: uses_triton(machine) and machine.platform == "cuda" and not machine.ptxas,
        lambda machine: "Triton has lost ptxas, NVIDIA's assembler",
        "pip install --force-reinstall --no-deps triton, or name one in TRITON_PTXAS_PATH",
    )
    yield ProblemCheck(
        "interpreted kernels",
        False,
        lambda machine: uses_triton(machine) and machine.interpreted,
        lambda machine: "TRITON_INTERPRET makes Triton run every kernel in Python, on the CPU",
        "unset TRITON_INTERPRET",
    )
    yield ProblemCheck(
        "another Triton",
        False,
        lambda machine: uses_triton(machine) and has_mismatched_triton(machine),
        lambda machine: (
            f"torch {machine.versions['torch']} asks for triton"
            f"{machine.triton_required_by_torch}, and {machine.versions['triton']} is installed: "
            "torch.compile may fail, fla's kernels do not care"
        ),
        "none needed without torch.compile; else install the one that torch asks for",
    )


def device_problem_checks() -> Iterator[ProblemCheck]:
    """GPUs that are not used, or not well."""
    yield ProblemCheck(
        "GPU unknown to torch",
        True,
        lambda machine: bool(machine.architectures and devices_without_torch_kernels(machine)),
        lambda machine: (
            f"torch {machine.versions['torch']} has no code for "
            f"{join_sorted_unique_device_names(devices_without_torch_kernels(machine))}, only for "
            f"{', '.join(machine.architectures)}"
        ),
        "install a torch that has: https://pytorch.org/get-started/locally",
    )
    yield ProblemCheck(
        "old GPU",
        False,
        lambda machine: uses_triton(machine) and bool(devices_below_ampere(machine)),
        lambda machine: (
            f"{join_sorted_unique_device_names(devices_below_ampere(machine))}: Triton is made for "
            "compute capability 8.0 and newer; below, kernels may fail and bfloat16 is slow"
        ),
        "--model.kernels torch, and mixed_precision: no in the accelerate configuration",
    )
    yield ProblemCheck(
        "torch without CUDA",
        False,
        lambda machine: torch_sees_none_of_unhidden_driver_gpus(machine) and machine.cuda is None,
        lambda machine: (
            f"NVIDIA's driver has {machine.driver_devices} GPU(s), but torch "
            f"{machine.versions['torch']} was built without CUDA: training runs on the CPU"
        ),
        "install torch with CUDA: https://pytorch.org/get-started/locally",
    )
    yield ProblemCheck(
        "driver too old",
        False,
        lambda machine: (
            torch_sees_none_of_unhidden_driver_gpus(machine) and machine.cuda is not None
        ),
        lambda machine: (
            f"torch, built for CUDA {machine.cuda}, cannot use the "
            f"{machine.driver_devices} GPU(s) of NVIDIA's driver {machine.driver}: training runs "
            "on the CPU"
        ),
        "update the driver, or install torch for an older CUDA",
    )
    yield ProblemCheck(
        "GPU in use",
        False,
        lambda machine: bool(devices_with_memory_in_use(machine)),
        lambda machine: (
            "other processes hold more than a fifth of the memory of "
            f"{len(devices_with_memory_in_use(machine))} GPU(s)"
        ),
        "nvidia-smi shows them; CUDA_VISIBLE_DEVICES chooses other GPUs",
    )
    yield ProblemCheck(
        "no NCCL",
        False,
        lambda machine: (
            machine.platform == "cuda" and len(machine.devices) > 1 and machine.nccl is None
        ),
        lambda machine: "this torch was built without NCCL: each GPU trains for itself at most",
        "NGPU=1, or install a torch with NCCL",
    )


def shared_memory_disk_and_permission_problem_checks() -> Iterator[ProblemCheck]:
    """Memory between processes, and disks."""
    yield ProblemCheck(
        "small shared memory",
        False,
        lambda machine: (
            machine.shared_memory_bytes is not None and machine.shared_memory_bytes < 16 * MIB
        ),
        lambda machine: (
            "less than 16 MiB are free in /dev/shm, through which loader workers and NCCL pass data"
        ),
        "docker run --shm-size 1g; or --training.num_workers 0",
    )
    yield ProblemCheck(
        "disk nearly full",
        False,
        lambda machine: any(folder.free_bytes < GIB for folder in machine.folders),
        lambda machine: (
            "less than 1 GiB is free for "
            + ", ".join(f"{f.purpose} ({f.path})" for f in machine.folders if f.free_bytes < GIB)
        ),
        "free some, or name another place: --job.dump_folder, TRITON_CACHE_DIR, FLAME_ACCEL_CACHE, "
        "HF_HOME",
    )
    yield ProblemCheck(
        "no writing",
        False,
        lambda machine: not all(folder.writable for folder in machine.folders),
        lambda machine: (
            "no permission to write "
            + ", ".join(f"{f.purpose} ({f.path})" for f in machine.folders if not f.writable)
        ),
        "name another place: --job.dump_folder, TRITON_CACHE_DIR, FLAME_ACCEL_CACHE, HF_HOME",
    )


def version_problem_checks(
    package: str, lowest: str, newest_tried_minor: str
) -> Iterator[ProblemCheck]:
    """An installed package that is older than the lowest version, or newer than what was tried."""
    yield ProblemCheck(
        f"old {package}",
        True,
        lambda machine: is_package_older(machine, package, lowest),
        lambda machine: (
            f"{package} {machine.versions[package]} is older than {lowest}, the oldest that works"
        ),
        f"pip install '{package}>={lowest}'",
    )
    yield ProblemCheck(
        f"new {package}",
        False,
        lambda machine: is_package_newer_than_minor(machine, package, newest_tried_minor),
        lambda machine: (
            f"{package} {machine.versions[package]} is newer than {newest_tried_minor}, the newest "
            "that was tried"
        ),
        "where something breaks: pip install -r requirements.txt has the tested versions",
    )


PROBLEMS = (
    *kernel_problem_checks(),
    *device_problem_checks(),
    *shared_memory_disk_and_permission_problem_checks(),
    *(row for name, limits in SUPPORTED.items() for row in version_problem_checks(name, *limits)),
)
"""The whole table."""
