"""What runs fla's operators where: Triton on a machine with a device for it, PyTorch elsewhere.

`install` decides, and is all that other packages need; `table` lists what serves what. Importing
this package imports neither torch nor fla.
"""

from flame_accel.kernels.install import install, triton_has_device, uninstall

__all__ = ["install", "triton_has_device", "uninstall"]
