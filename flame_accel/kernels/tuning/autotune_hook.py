"""The one place where Triton's autotuner is entered: it asks a `Tuner` for fla's kernels.

Which configuration a kernel gets is decided in `tuner`.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from flame_accel.kernels.tuning.gpu import detect_gpu_name_and_capability
from flame_accel.kernels.tuning.policy import TuneKernels, decide_tuning
from flame_accel.kernels.tuning.tuned_configs import TritonAutotuner
from flame_accel.kernels.tuning.tuner import KernelLaunch, Tuner

log = logging.getLogger("flame_accel")

_active: Tuner | None = None
_original_run: Callable[..., Any] | None = None


def install_autotune_hook(tuner: Tuner | None = None) -> Tuner:
    """Makes a tuner choose the configurations of all of fla's kernels, also those already imported.

    Args:
        tuner: Replaces the active one; None keeps it, or makes one for this GPU.
    """
    global _active, _original_run
    from triton.runtime.autotuner import Autotuner

    _active = tuner or _active or Tuner(detect_gpu_name_and_capability())
    if _original_run is None:
        original_run = _original_run = Autotuner.run

        def run_with_chosen_config(kernel: TritonAutotuner, *args: Any, **kwargs: Any) -> Any:
            if _active is not None and len(kernel.configs) > 1 and _is_fla_kernel(kernel):
                launch = KernelLaunch(kernel, args, kwargs)
                key = _autotune_key(launch)
                if key not in kernel.cache:
                    kernel.cache[key] = _active.load_tune_or_pick_and_save_config(launch, key)
                    _active.chosen.append((kernel.cache, key))
            return original_run(kernel, *args, **kwargs)

        cast(Any, Autotuner).run = run_with_chosen_config
    return _active


def uninstall_autotune_hook() -> None:
    """Gives the choice back to Triton."""
    global _active, _original_run
    if _original_run is not None:
        from triton.runtime.autotuner import Autotuner

        cast(Any, Autotuner).run = _original_run
    _active = _original_run = None


@contextmanager
def disable_tuning_then_forget_choices_made() -> Iterator[None]:
    """Runs kernels without tuning them, inside, and forgets the choices made there.

    For work that is over before tuning pays off: checks of a model, a sample of its text. Nothing
    changes where Triton does not run.
    """
    global _active
    before = _active
    if before is None:
        yield
        return
    temporary = install_autotune_hook(Tuner(before.gpu, tunes=False))
    try:
        yield
    finally:
        for cache, key in temporary.chosen:
            cache.pop(key, None)
        _active = before


def keep_configs_in_run_folder(folder: Path) -> None:
    """Reads the choices of earlier starts from `folder` first, and writes all new ones to it.

    It gets a subfolder for each kind of GPU. Nothing happens where Triton does not run.
    """
    if _active is not None:
        _active.run_folder = folder / _active.gpu.name


def apply_tune_kernels_option(
    tune_kernels: TuneKernels, flops_per_token: float | None, total_tokens: int
) -> None:
    """Settles whether this run tunes its kernels, and logs it. Nothing happens without Triton.

    Args:
        tune_kernels: `model.tune_kernels`.
        flops_per_token: Operations of training on one token; None if unknown.
        total_tokens: Tokens of the whole run, on all ranks.
    """
    if _active is not None:
        tokens_per_device = total_tokens / int(os.environ.get("WORLD_SIZE", "1"))
        _active.tunes, message = decide_tuning(tune_kernels, flops_per_token, tokens_per_device)
        log.info("%s", message)


def _is_fla_kernel(kernel: TritonAutotuner) -> bool:
    return kernel.base_fn.__module__.startswith("fla.")


def _autotune_key(launch: KernelLaunch) -> tuple[Any, ...]:
    """The key of a launch, built as Triton's `Autotuner.run` builds it."""
    kernel = launch.kernel
    known = {name: x for name, x in launch.arguments.items() if name in kernel.arg_names}
    dtypes = [str(value.dtype) for value in known.values() if hasattr(value, "dtype")]
    return (*(known[name] for name in kernel.keys if name in known), *dtypes)
