"""Installs the kernels that a run's options ask for, and keeps their configurations with the run.

How they are installed is in `install`, `fused.replace`, `operator_recompute` and `packages`.
"""

import logging
from pathlib import Path

from flame_accel.config import ModelConfig
from flame_accel.kernels.fused.replace import install_fused_kernels
from flame_accel.kernels.install import KernelKind, install
from flame_accel.kernels.operator_recompute import choose_operator_recompute
from flame_accel.kernels.packages import KERNEL_PACKAGES, install_package_kernels
from flame_accel.kernels.tuning import keep_configs_in_run_folder

log = logging.getLogger("flame_accel")


def install_configured_kernels(options: ModelConfig, run_folder: Path) -> KernelKind:
    """Installs what section `model` asks for, logs it, and returns which kernels are active."""
    active = install(options.kernels)
    fused = active == "triton" and options.fused_kernels
    if fused:
        install_fused_kernels()
    from_packages: list[str] = []
    if active == "triton":
        choose_operator_recompute(options.recompute_operators)
        allowed = [package for package in KERNEL_PACKAGES if getattr(options, package.option)]
        versions = install_package_kernels(allowed)
        from_packages = [
            f"; {package.serves} by {package.distribution} {versions[package.distribution]}"
            for package in allowed
            if package.distribution in versions
        ]
    fused_parts = ", fused norms, SwiGLU, embedding, loss, and layers of Mamba2 and RWKV-7"
    log.info("kernels: %s%s%s", active, fused_parts * fused, "".join(from_packages))
    # a restart is bit-identical only with the same kernel configurations
    keep_configs_in_run_folder(run_folder / "tuning")
    return active
