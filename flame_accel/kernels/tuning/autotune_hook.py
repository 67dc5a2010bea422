"""The one place where Triton's autotuner is entered: it asks a `Tuner` for fla's kernels.

Which configuration a kernel gets is decided in `tuner`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from flame_accel.kernels.tuning.tuner import Tuner

_active: Tuner | None = None
_original: Callable[..., Any] | None = None


def install_hook(tuner: Tuner | None = None) -> Tuner:
    """Lets a tuner choose for all of fla's kernels, those already imported among them."""
    global _active, _original
    from fla.ops.utils.cache import get_gpu_info
    from triton.runtime.autotuner import Autotuner

    _active = tuner or _active or Tuner(get_gpu_info())
    if _original is None:
        original = _original = Autotuner.run

        def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            if _active is not None and len(kernel.configs) > 1 and _is_flas(kernel):
                key = _key(kernel, args, kwargs)
                if key not in kernel.cache:
                    kernel.cache[key] = _active.choose(kernel, key, args, kwargs)
                    if not _active.patient:
                        _active.provisional.append((kernel.cache, key))
            return original(kernel, *args, **kwargs)

        cast(Any, Autotuner).run = run
    return _active


def uninstall_hook() -> None:
    """Leaves the choice to Triton again."""
    global _active, _original
    if _original is not None:
        from triton.runtime.autotuner import Autotuner

        cast(Any, Autotuner).run = _original
    _active = _original = None


@contextmanager
def untuned() -> Iterator[None]:
    """Runs kernels without tuning them, for a look at what they compute, and forgets the choices.

    Nothing changes where Triton does not run.
    """
    global _active
    before = _active
    if before is None:
        yield
        return
    impatient = install_hook(Tuner(before.gpu, patient=False))
    try:
        yield
    finally:
        for cache, key in impatient.provisional:
            cache.pop(key, None)
        _active = before


def persist_configs(folder: Path) -> None:
    """Writes every choice of this process to `folder` too, and follows what is there already.

    A folder below it belongs to this kind of GPU. Nothing happens where Triton does not run.
    """
    if _active is not None:
        _active.run_folder = folder / _active.gpu


def _is_flas(kernel: Any) -> bool:
    return kernel.base_fn.__module__.startswith("fla.")


def _key(kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """As Triton's `Autotuner.run` makes it."""
    arguments = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
    known = {name: value for name, value in arguments.items() if name in kernel.arg_names}
    dtypes = [str(value.dtype) for value in known.values() if hasattr(value, "dtype")]
    return (*(known[name] for name in kernel.keys if name in known), *dtypes)
