"""Installs the kernels that a run's options ask for, and keeps their configurations with the run.

How they are installed is in `install`, `fused.replace` and `operator_recompute`.
"""

import logging
from pathlib import Path

from flame_accel.config import ModelConfig
from flame_accel.kernels.fused.replace import install_fused_kernels
from flame_accel.kernels.install import KernelKind, install
from flame_accel.kernels.operator_recompute import choose_operator_recompute
from flame_accel.kernels.tuning import keep_configs_in_run_folder

log = logging.getLogger("flame_accel")


def install_configured_kernels(options: ModelConfig, run_folder: Path) -> KernelKind:
    """Installs what section `model` asks for, logs it, and returns which kernels are active."""
    active = install(options.kernels)
    fused = active == "triton" and options.fused_kernels
    if fused:
        install_fused_kernels()
    if active == "triton":
        choose_operator_recompute(options.recompute_operators)
    fused_parts = ", fused norms, SwiGLU, embedding, loss, and layers of Mamba2 and RWKV-7"
    log.info("kernels: %s%s", active, fused_parts * fused)
    # a restart is bit-identical only with the same kernel configurations
    keep_configs_in_run_folder(run_folder / "tuning")
    return active
