"""Kernels of other packages that serve in place of fla's and torch's: optional, found at run time.

Each has an option of section `model`, and serves where its package is installed and the GPU is one
that it was proven equal on. `install_package_kernels` is run once the kernels of `install` are
there; the other modules each know one package. Importing this package imports none of them.
"""

from flame_accel.kernels.packages.found import (
    HOPPER,
    KERNEL_PACKAGES,
    KernelPackage,
    active_kernel_packages,
    install_package_kernels,
    package_kernels_are_allowed,
    package_kernels_disabled,
)

__all__ = [
    "HOPPER",
    "KERNEL_PACKAGES",
    "KernelPackage",
    "active_kernel_packages",
    "install_package_kernels",
    "package_kernels_are_allowed",
    "package_kernels_disabled",
]
