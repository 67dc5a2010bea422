"""What runs fla's operators where: Triton on a machine with a device for it, PyTorch elsewhere.

`install` decides, and is nearly all that other packages need; `table` lists what serves what;
`tuning` finds the configurations that Triton's kernels run with, and `persist_configs` keeps them
with a run. Importing this package imports neither torch nor fla.
"""

from flame_accel.kernels.install import install, triton_has_device, uninstall
from flame_accel.kernels.tuning import persist_configs, set_tuning, tuning_disabled

__all__ = [
    "install",
    "persist_configs",
    "set_tuning",
    "triton_has_device",
    "tuning_disabled",
    "uninstall",
]
