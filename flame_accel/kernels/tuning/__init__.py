"""Which configuration a Triton kernel of fla runs with: found on disk, or tuned in parallel.

`tuned_configs` keeps configurations, in the format of fla's own config cache; `tuner` finds them
and tunes what nobody has tuned yet; `autotune_hook` is where Triton asks for them. Shipped ones lie
in `shipped/`, one folder per GPU.
"""

from flame_accel.kernels.tuning.autotune_hook import (
    install_hook,
    persist_configs,
    uninstall_hook,
    untuned,
)
from flame_accel.kernels.tuning.tuned_configs import cache_folder, shipped_folder
from flame_accel.kernels.tuning.tuner import Tuner

__all__ = [
    "Tuner",
    "cache_folder",
    "install_hook",
    "persist_configs",
    "shipped_folder",
    "uninstall_hook",
    "untuned",
]
