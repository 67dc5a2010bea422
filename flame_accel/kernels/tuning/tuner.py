"""Chooses the configuration of every autotuned Triton kernel: as found on disk, else by tuning.

Triton's autotuner compiles one candidate after the other and times each for an eighth of a second;
fla has hundreds. Here the candidates of a kernel compile in a pool of threads and are timed twice:
all of them shortly, then the best few for longer. What was chosen is written to the run's folder,
so that a restart computes the same bits, and what was tuned to the user's cache folder, so that it
is tuned once. `tuned_configs` reads and writes the files; `autotune_hook` is where Triton calls.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from flame_accel.kernels.tuning import tuned_configs

log = logging.getLogger("flame_accel")

FIRST_PASS = {"warmup": 2, "rep": 10}
"""Milliseconds for which every candidate is timed."""
LAST_PASS = {"warmup": 10, "rep": 60}
"""Milliseconds for the candidates of the last pass."""
FINALISTS = 4
"""At most so many candidates reach the last pass."""
WITHIN = 1.15
"""A finalist takes at most this times as long as the fastest of the first pass."""


class Tuner:
    """Finds or tunes configurations; one per process."""

    def __init__(
        self, gpu: str, folder: Path | None = None, *, fresh: bool = False, patient: bool = True
    ) -> None:
        """Tunes for one kind of GPU.

        Args:
            gpu: fla's name of it.
            folder: Where the results are kept, in a folder of that name; None is the user's cache.
            fresh: Do not look at what is kept there or shipped.
            patient: Else the first candidate that runs is taken and nothing is kept, for a look at
                what a kernel computes and not how fast.
        """
        import triton

        self.triton_version: str = triton.__version__
        self.gpu, self.patient = gpu, patient
        self.tuned_folder = (folder or tuned_configs.cache_folder() / "tuned") / gpu
        self.folders = [] if fresh else [self.tuned_folder, tuned_configs.shipped_folder(gpu)]
        self.run_folder: Path | None = None
        self.provisional: list[tuple[dict[Any, Any], Any]] = []
        """What an impatient tuner has put into which kernel's cache."""
        self.tuned: dict[str, int] = {}
        """Kernels tuned by this process, and the number of their candidates."""
        self.seconds = {"compiling": 0.0, "timing": 0.0}
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.num_threads = max(1, len(os.sched_getaffinity(0)) // local_ranks)

    def choose(
        self,
        kernel: Any,
        key: Sequence[Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """The configuration with which `kernel` shall run.

        Args:
            kernel: Triton's `Autotuner`.
            key: Under which it looks its configurations up.
            args: Positional arguments of the launch.
            kwargs: Keyword arguments of the launch, `grid` and `warmup` among them.
        """
        kernel.nargs = dict(zip(kernel.arg_names, args, strict=False))
        candidates = kernel.prune_configs(kwargs)
        if len(candidates) == 1:
            return candidates[0]
        name = kernel.base_fn.__name__
        names = [n for n in kernel.keys if n in kernel.nargs or n in kwargs]
        config = self._find(name, names, key, candidates)
        if config is None and not self.patient:
            return first_that_runs(kernel, candidates, args, kwargs)
        if config is None:
            self.tuned_folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.tuned_folder / ".tuning.lock"):
                # another process of this machine may have tuned it while this one waited
                config = self._find(name, names, key, candidates)
                if config is None:
                    config = self._tune(name, kernel, candidates, args, kwargs)
                    self._write(self.tuned_folder, name, key, config)
        if self.run_folder is not None:
            self._write(self.run_folder, name, key, config)
        return config

    def _find(
        self, name: str, names: Sequence[str], key: Sequence[Any], candidates: Sequence[Any]
    ) -> Any:
        for folder in ([self.run_folder] if self.run_folder else []) + self.folders:
            found = tuned_configs.find(folder, name, names, key)
            # what is no candidate was tuned for another version of the kernel, or its namesake
            for candidate in candidates:
                if found is not None and _describe(candidate) == dict(found):
                    return candidate
        return None

    def _write(self, folder: Path, name: str, key: Sequence[Any], config: Any) -> None:
        tuned_configs.write(folder, name, key, _describe(config), self.triton_version)

    def _tune(
        self,
        name: str,
        kernel: Any,
        candidates: Sequence[Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        if not self.tuned:
            log.info(
                "tuning Triton kernels that have no configuration for this GPU and shape yet; they "
                "are kept in %s for every later run",
                self.tuned_folder,
            )
        begin = time.perf_counter()
        compile_all(kernel, candidates, args, kwargs, self.num_threads)
        compiled = time.perf_counter()
        best = fastest(kernel, candidates, args, kwargs)
        timed = time.perf_counter()
        self.tuned[name] = len(candidates)
        self.seconds["compiling"] += compiled - begin
        self.seconds["timing"] += timed - compiled
        log.info(
            "tuned %s: %d candidates, %.1f s compiling, %.1f s timing (%d kernels, %.0f s so far)",
            name,
            len(candidates),
            compiled - begin,
            timed - compiled,
            len(self.tuned),
            sum(self.seconds.values()),
        )
        return best


def compile_all(
    kernel: Any,
    candidates: Sequence[Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    num_threads: int,
) -> None:
    """Compiles all candidates, `num_threads` at a time; those that do not compile stay out.

    Most of a compilation is LLVM's and ptxas', which run beside the interpreter.
    """
    from triton import AsyncCompileMode

    with (
        ThreadPoolExecutor(num_threads) as pool,
        AsyncCompileMode(pool, ignore_errors=True),
    ):
        for config in candidates:
            options = {**kwargs, **config.all_kwargs()}
            if config.pre_hook is not None:
                # what it changes in tensor descriptors is part of what is compiled
                config.pre_hook({**kernel.nargs, **options})
            kernel.fn.run(*args, **{**options, "warmup": True})


def fastest(
    kernel: Any, candidates: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The candidate with the lowest median time, its arguments left as before the first launch."""

    def seconds(config: Any) -> float:
        return kernel._bench(*args, config=config, **kwargs)[0]

    with _timed_for(kernel, **FIRST_PASS):
        first = {config: seconds(config) for config in candidates}
    ranked = sorted(candidates, key=lambda config: first[config])
    finalists = [c for c in ranked[:FINALISTS] if first[c] <= WITHIN * first[ranked[0]]]
    best = finalists[0]
    if len(finalists) > 1:
        with _timed_for(kernel, **LAST_PASS):
            best = min(finalists, key=seconds)
    kernel.pre_hook({**kernel.nargs, **kwargs, **best.all_kwargs()}, reset_only=True)
    return best


def first_that_runs(
    kernel: Any, candidates: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The first candidate that this GPU has the resources for; the last if none has."""
    for config in candidates:
        with _timed_for(kernel, warmup=0, rep=1):
            if kernel._bench(*args, config=config, **kwargs)[0] < math.inf:
                break
    kernel.pre_hook({**kernel.nargs, **kwargs, **config.all_kwargs()}, reset_only=True)
    return config


@contextmanager
def _timed_for(kernel: Any, **milliseconds: int) -> Iterator[None]:
    """Makes `kernel` time its candidates for so long."""
    from triton.testing import do_bench

    before = kernel.do_bench
    kernel.do_bench = partial(do_bench, **milliseconds)
    try:
        yield
    finally:
        kernel.do_bench = before


def _describe(config: Any) -> dict[str, Any]:
    """The configuration in fla's format."""
    return {
        "kwargs": dict(config.kwargs),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "num_ctas": config.num_ctas,
        "maxnreg": config.maxnreg,
        "ir_override": config.ir_override,
    }
