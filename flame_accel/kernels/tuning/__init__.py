"""Which configuration a Triton kernel of fla runs with: found on disk, or tuned in parallel.

`choices` keeps configurations, in the format of fla's own config cache; `tuner` finds them and
tunes what nobody has tuned yet; `door` is where Triton asks for them. Shipped ones lie in
`shipped/`, one folder per GPU.
"""

from flame_accel.kernels.tuning.choices import cache_folder, shipped_folder
from flame_accel.kernels.tuning.door import close_door, keep_choices_in, open_door, untuned
from flame_accel.kernels.tuning.tuner import Tuner

__all__ = [
    "Tuner",
    "cache_folder",
    "close_door",
    "keep_choices_in",
    "open_door",
    "shipped_folder",
    "untuned",
]
