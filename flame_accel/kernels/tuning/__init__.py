"""Which configuration a Triton kernel of fla runs with: stored, tuned in parallel, or the nearest.

`tuned_configs` reads and writes configurations, in the format of fla's own config cache; `tuner`
finds them and tunes what nobody has tuned yet, where `policy` says that the run is long enough;
otherwise `nearest` ranks what there is. `autotune_hook` is where Triton asks for them. Shipped ones
are in `shipped/`, one folder per compute capability.
"""

from flame_accel.kernels.tuning.autotune_hook import (
    apply_tune_kernels_option,
    disable_tuning_then_forget_choices_made,
    install_autotune_hook,
    keep_configs_in_run_folder,
    uninstall_autotune_hook,
)
from flame_accel.kernels.tuning.gpu import Gpu, detect_gpu_name_and_capability
from flame_accel.kernels.tuning.tuned_configs import (
    flame_accel_cache_folder,
    shipped_configs_folder,
)
from flame_accel.kernels.tuning.tuner import Tuner

__all__ = [
    "Gpu",
    "Tuner",
    "apply_tune_kernels_option",
    "detect_gpu_name_and_capability",
    "disable_tuning_then_forget_choices_made",
    "flame_accel_cache_folder",
    "install_autotune_hook",
    "keep_configs_in_run_folder",
    "shipped_configs_folder",
    "uninstall_autotune_hook",
]
