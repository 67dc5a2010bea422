"""Invented machines: a good one, and one for each known problem."""

from dataclasses import replace
from typing import Any

from flame_accel.diagnosis.machine import (
    Device,
    Folder,
    Machine,
)

GIB = 2**30


H200 = Device(name="NVIDIA H200", memory_bytes=140 * GIB, free_bytes=139 * GIB, capability=(9, 0))


VERSIONS: dict[str, str | None] = {
    "torch": "2.13.0",
    "triton": "3.7.1",
    "flash-linear-attention": "0.6.0",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "flash-attn": None,
    "flash-attn-4": None,
    "flash-qla": None,
    "mamba-ssm": None,
    "causal-conv1d": None,
    "tilelang": None,
}


GOOD = Machine(
    system="Linux",
    python="3.11.7",
    processor="AMD EPYC",
    cores=16,
    memory_bytes=128 * GIB,
    shared_memory_bytes=64 * GIB,
    platform="cuda",
    devices=(H200,),
    driver="580.1",
    driver_devices=1,
    hidden_devices=False,
    cuda="13.0",
    architectures=("sm_80", "sm_90", "compute_90"),
    nccl="2.28.9",
    versions=VERSIONS,
    triton_required_by_torch="==3.7.1",
    kernels="triton",
    compiler="/usr/bin/gcc",
    python_headers=True,
    ptxas=True,
    nvcc=False,
    interpreted=False,
    folders=(Folder(purpose="the run", path="exp", free_bytes=100 * GIB, writable=True),),
)


ON_CPU = replace(
    GOOD, platform="cpu", devices=(), driver_devices=0, kernels="torch", architectures=(), nccl=None
)


def with_versions(machine: Machine = GOOD, **versions: str | None) -> Machine:
    changes = {name.replace("_", "-"): version for name, version in versions.items()}
    return replace(machine, versions={**machine.versions, **changes})


def with_device(**changes: Any) -> Machine:
    return replace(GOOD, devices=(replace(H200, **changes),))


def with_folder(**changes: Any) -> Machine:
    return replace(GOOD, folders=(replace(GOOD.folders[0], **changes),))


BAD_TRITON = replace(with_versions(triton="3.6.0"), triton_required_by_torch="==3.6.0")


# row -> a machine that has this problem and no other
SICK = {
    "no Triton": with_versions(ON_CPU, triton=None),
    "gated kernels on Hopper": BAD_TRITON,
    "simple GLA on Hopper": BAD_TRITON,
    "no C compiler": replace(GOOD, compiler=None),
    "no Python.h": replace(GOOD, python_headers=False),
    "no ptxas": replace(GOOD, ptxas=False),
    "interpreted kernels": replace(GOOD, interpreted=True),
    "another Triton": replace(GOOD, triton_required_by_torch="==3.6.0"),
    "GPU unknown to torch": replace(GOOD, architectures=("sm_80", "sm_100a")),
    "old GPU": replace(with_device(capability=(7, 5)), architectures=("sm_75",)),
    "torch without CUDA": replace(ON_CPU, driver_devices=1, cuda=None),
    "driver too old": replace(ON_CPU, driver_devices=1),
    "GPU in use": with_device(free_bytes=100 * GIB),
    "no NCCL": replace(GOOD, devices=(H200, H200), nccl=None),
    "small shared memory": replace(GOOD, shared_memory_bytes=2**20),
    "disk nearly full": with_folder(free_bytes=GIB // 2),
    "no writing": with_folder(writable=False),
    "old torch": with_versions(torch="2.10.1+cu128"),
    "old triton": replace(with_versions(triton="3.2.0"), triton_required_by_torch=None),
    "old flash-linear-attention": with_versions(flash_linear_attention="0.5.1"),
    "old transformers": with_versions(transformers="5.16.4"),
    "old accelerate": with_versions(accelerate="1.14.0"),
    "old datasets": with_versions(datasets="4.9.0"),
    "new torch": with_versions(torch="2.14.0.dev20261201"),
    "new triton": replace(with_versions(triton="3.8.0"), triton_required_by_torch="==3.8.0"),
    "new flash-linear-attention": with_versions(flash_linear_attention="0.7.0"),
    "new transformers": with_versions(transformers="6.0.0"),
    "new accelerate": with_versions(accelerate="1.16.0"),
    "new datasets": with_versions(datasets="5.3.1"),
}
