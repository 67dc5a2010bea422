"""Which configuration a Triton kernel of fla runs with: stored, tuned in parallel, or the nearest.

`tuned_configs` reads and writes configurations, in the format of fla's own config cache; `tuner`
finds them and tunes what nobody has tuned yet, where `policy` says that the run is long enough;
otherwise `nearest` ranks what there is. `autotune_hook` is where Triton asks for them. Shipped ones
are in `shipped/`, one folder per compute capability.
"""

from flame_accel.kernels.tuning.autotune_hook import (
    install_hook,
    persist_configs,
    set_tuning,
    tuning_disabled,
    uninstall_hook,
)
from flame_accel.kernels.tuning.gpu import Gpu, detect_gpu
from flame_accel.kernels.tuning.tuned_configs import cache_folder, shipped_folder
from flame_accel.kernels.tuning.tuner import Tuner

__all__ = [
    "Gpu",
    "Tuner",
    "cache_folder",
    "detect_gpu",
    "install_hook",
    "persist_configs",
    "set_tuning",
    "shipped_folder",
    "tuning_disabled",
    "uninstall_hook",
]
