"""What runs fla's operators where: Triton on a machine with a device for it, PyTorch elsewhere.

`install` decides, and is nearly all that other packages need; `replacements` lists which
function replaces which; `tuning` finds the configurations that Triton's kernels run with, and
`keep_configs_in_run_folder` keeps them with a run. Importing this package imports
neither torch nor fla.
"""

from flame_accel.kernels.configured import install_configured_kernels
from flame_accel.kernels.fused.replace import (
    install_fused_kernels,
    share_inputs_of_linear_maps,
)
from flame_accel.kernels.install import install, triton_has_device, uninstall
from flame_accel.kernels.operator_recompute import choose_operator_recompute
from flame_accel.kernels.packages import active_kernel_packages
from flame_accel.kernels.tuning import (
    apply_tune_kernels_option,
    disable_tuning_then_forget_choices_made,
    keep_configs_in_run_folder,
)

__all__ = [
    "active_kernel_packages",
    "apply_tune_kernels_option",
    "choose_operator_recompute",
    "disable_tuning_then_forget_choices_made",
    "install",
    "install_configured_kernels",
    "install_fused_kernels",
    "keep_configs_in_run_folder",
    "share_inputs_of_linear_maps",
    "triton_has_device",
    "uninstall",
]
