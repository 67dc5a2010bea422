"""Which packages with kernels are installed, which of them serve in this process, and why not.

What they compute, and for which calls, is in the module of each.
"""

import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from flame_accel.kernels.install import _undo_actions

log = logging.getLogger("flame_accel")

HOPPER = (9, 0)
"""Compute capability of the GPUs on which the packages were compared with what they replace."""


class KernelPackage(NamedTuple):
    """A package whose kernels may serve."""

    distribution: str
    """As pip knows it."""
    option: str
    """In section `model`, true if it may serve."""
    serves: str
    """What it computes, in words."""
    module: str
    """Our module for it, with `activate` and `deactivate`."""


KERNEL_PACKAGES = (
    KernelPackage(
        "flash-attn-4",
        "flash_attn_4",
        "softmax attention",
        "flame_accel.kernels.packages.flash_attn_4",
    ),
    KernelPackage(
        "flash-qla",
        "flash_qla",
        "the gated delta rule",
        "flame_accel.kernels.packages.flash_qla",
    ),
)


class ActivePackage(NamedTuple):
    """A package that serves in this process."""

    version: str
    deactivate: Callable[[], None]
    """Ends that."""


_active: dict[str, ActivePackage] = {}
"""By the name that pip knows."""
_allowed: list[bool] = [True]


@contextmanager
def package_kernels_disabled() -> Iterator[None]:
    """Has no package's kernels called inside the block, to compare with."""
    _allowed.append(False)
    try:
        yield
    finally:
        _allowed.pop()


def package_kernels_are_allowed() -> bool:
    """Whether the caller is outside of all `package_kernels_disabled`."""
    return _allowed[-1]


def active_kernel_packages() -> dict[str, str]:
    """Packages whose kernels serve in this process -> their versions."""
    return {distribution: active.version for distribution, active in _active.items()}


def install_package_kernels(packages: Sequence[KernelPackage]) -> dict[str, str]:
    """Lets the kernels of those packages serve that are installed and run on this GPU, no others.

    Lasts until `uninstall` or the next call. A package that is installed and fails to load is named
    in a warning; what it would serve runs as without it.

    Returns:
        The packages that serve now, and their versions.
    """
    for distribution in _active.keys() - {package.distribution for package in packages}:
        _deactivate(distribution)
    for package in packages:
        version = _installed_version(package.distribution)
        if version is None or _gpu_capability() != HOPPER:
            continue
        try:
            module = importlib.import_module(package.module)
            module.activate()
        # whatever a package does when it is loaded, a run can do without it
        except Exception as error:
            log.warning(
                "%s is installed and does not load (%s: %s): %s runs without it",
                package.distribution,
                type(error).__name__,
                str(error).splitlines()[0] if str(error) else "no message",
                package.serves,
            )
            continue
        _active[package.distribution] = ActivePackage(version, module.deactivate)
        _undo_actions.append(partial(_deactivate, package.distribution))
    return active_kernel_packages()


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _deactivate(distribution: str) -> None:
    active = _active.pop(distribution, None)
    if active is not None:
        active.deactivate()


def _gpu_capability() -> tuple[int, int] | None:
    """Compute capability of the current NVIDIA GPU; None without one."""
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability()
