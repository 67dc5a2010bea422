"""Chooses the configuration of every autotuned Triton kernel: stored, tuned, or the nearest one.

Triton's autotuner compiles one candidate after the other and times each for an eighth of a second;
fla has hundreds. Here the candidates of a kernel compile in a pool of threads and are timed twice:
all of them briefly, then the best few for longer. Where a run is too short for that (`policy`), a
kernel takes the nearest stored configuration that runs (`nearest`). What was chosen is written to
the run folder, so that a restart computes the same bits, and what was tuned to the user's cache
folder, so that it is tuned once. `tuned_configs` reads and writes the files; `autotune_hook` is
where Triton calls.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from flame_accel.kernels.tuning import tuned_configs
from flame_accel.kernels.tuning.gpu import Gpu
from flame_accel.kernels.tuning.nearest import (
    config_to_fla_dict,
    sort_candidates_by_block_fit_then_nearness,
)
from flame_accel.kernels.tuning.tuned_configs import Key, TritonAutotuner, TritonConfig
from flame_accel.kernels.tuning.warps import without_wgmma_of_narrow_heads

log = logging.getLogger("flame_accel")

FIRST_PASS = {"warmup": 2, "rep": 10}
"""Milliseconds of warm-up and timing for every candidate."""
LAST_PASS = {"warmup": 10, "rep": 60}
"""The same for the candidates of the last pass."""
FINALISTS = 4
"""Largest number of candidates in the last pass."""
FINALIST_RATIO = 1.15
"""A finalist takes at most this times as long as the fastest of the first pass."""
LARGEST_SPILL = 255
"""Registers that an untuned candidate may keep in memory, as many as a thread has.

With two warps `chunk_bwd_kernel_dqkwg` keeps 4,100 for heads of Mamba2, 150 with four.
"""


class KernelLaunch(NamedTuple):
    """One call of Triton's `Autotuner.run`."""

    kernel: TritonAutotuner
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    """`grid` and `warmup` among them."""

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name."""
        return {**dict(zip(self.kernel.arg_names, self.args, strict=False)), **self.kwargs}


class Tuner:
    """Finds or tunes configurations; one per process."""

    def __init__(
        self, gpu: Gpu, folder: Path | None = None, *, fresh: bool = False, tunes: bool = True
    ) -> None:
        """Opens the stored configurations for one kind of GPU.

        Args:
            gpu: The device that the kernels run on.
            folder: Where tuned configurations are written; None is a folder of the GPU's name in
                the user's cache.
            fresh: Ignore what is stored there or shipped.
            tunes: Tune kernels that have no configuration for their shape; otherwise they take
                the nearest one.
        """
        import triton

        self.triton_version: str = triton.__version__
        self.gpu, self.tunes = gpu, tunes
        self.tuned_folder = folder or tuned_configs.flame_accel_cache_folder() / "tuned" / gpu.name
        shipped = tuned_configs.shipped_configs_folder(gpu.capability)
        self.folders = [] if fresh else [self.tuned_folder, shipped]
        self.run_folder: Path | None = None
        """Holds what this run has chosen; read first and written always. None outside of a run."""
        self.chosen: list[tuple[dict[Any, Any], Any]] = []
        """Every choice so far: the kernel's cache that it was put into, and its key there."""
        self.tuned: dict[str, int] = {}
        """Kernels tuned by this process, and the number of their candidates."""
        self.seconds = {"compiling": 0.0, "timing": 0.0}
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.num_threads = max(1, len(os.sched_getaffinity(0)) // local_ranks)

    def load_tune_or_pick_and_save_config(self, launch: KernelLaunch, key: Key) -> TritonConfig:
        """Returns the configuration, one of Triton's `Config` objects, that a kernel runs with.

        Args:
            launch: The first one with this key.
            key: Under which the kernel looks its configurations up.
        """
        kernel = launch.kernel
        kernel.nargs = dict(zip(kernel.arg_names, launch.args, strict=False))
        candidates = without_wgmma_of_narrow_heads(
            kernel.prune_configs(launch.kwargs), launch.arguments, self.gpu.capability
        )
        if len(candidates) == 1:
            return candidates[0]
        name = kernel.base_fn.__name__
        save = partial(
            tuned_configs.save_tuned_config,
            kernel_name=name,
            key=key,
            triton_version=self.triton_version,
        )
        key_argument_names = [n for n in kernel.keys if n in launch.arguments]
        config = self._load_tuned_config(name, key_argument_names, key, candidates)
        if config is None and not self.tunes:
            entries = [
                e
                for f in self.folders
                for e in tuned_configs.load_tuned_entries_or_raise_if_malformed(f, name)
            ]
            ranked = sort_candidates_by_block_fit_then_nearness(
                candidates, entries, key, launch.arguments
            )
            config = pick_runnable_low_spill_else_last_candidate(launch, ranked)
        elif config is None:
            self.tuned_folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.tuned_folder / ".tuning.lock"):
                # another process of this machine may have tuned it while this one waited
                config = self._load_tuned_config(name, key_argument_names, key, candidates)
                if config is None:
                    config = self._tune_kernel(launch, candidates)
                    save(self.tuned_folder, config=config_to_fla_dict(config))
        if self.run_folder is not None:
            save(self.run_folder, config=config_to_fla_dict(config))
        return config

    def _load_tuned_config(
        self,
        name: str,
        key_argument_names: Sequence[str],
        key: Key,
        candidates: Sequence[TritonConfig],
    ) -> TritonConfig | None:
        """The candidate stored for `key` in the run folder, the cache or what is shipped, or None.

        Args:
            name: Of the kernel.
            key_argument_names: Names of the arguments at the start of the key.
            key: Values and dtypes.
            candidates: What the kernel may run with.
        """
        for folder in ([self.run_folder] if self.run_folder else []) + self.folders:
            found = tuned_configs.find_exact_or_rounded_config(
                folder, name, key_argument_names, key
            )
            # what is no candidate was tuned for another version of the kernel, or its namesake
            for candidate in candidates:
                if found is not None and config_to_fla_dict(candidate) == dict(found):
                    return candidate
        return None

    def _tune_kernel(
        self, launch: KernelLaunch, candidates: Sequence[TritonConfig]
    ) -> TritonConfig:
        """Compiles and times all candidates, returns the fastest, and logs how long it took."""
        if not self.tuned:
            log.info(
                "tuning Triton kernels that have no configuration for this GPU and shape; the "
                "results are kept in %s for later runs",
                self.tuned_folder,
            )
        begin = time.perf_counter()
        compile_candidates(launch, candidates, self.num_threads)
        compiled = time.perf_counter()
        best = pick_fastest_candidate(launch, candidates)
        timed = time.perf_counter()
        name = launch.kernel.base_fn.__name__
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


def compile_candidates(
    launch: KernelLaunch, candidates: Sequence[TritonConfig], num_threads: int
) -> None:
    """Compiles all candidates, `num_threads` at a time; those that do not compile are ignored.

    LLVM and ptxas, which take most of the time, release the interpreter's lock.
    """
    from triton import AsyncCompileMode

    with (
        ThreadPoolExecutor(num_threads) as pool,
        AsyncCompileMode(pool, ignore_errors=True),
    ):
        for config in candidates:
            options = config.all_kwargs()
            if config.pre_hook is not None:
                # what it changes in tensor descriptors is part of what is compiled
                config.pre_hook({**launch.arguments, **options})
            launch.kernel.fn.run(*launch.args, **{**launch.kwargs, **options, "warmup": True})


def pick_fastest_candidate(
    launch: KernelLaunch, candidates: Sequence[TritonConfig]
) -> TritonConfig:
    """Returns the candidate with the lowest median time.

    Arguments that the kernel adds to are reset, as before the first launch.
    """
    kernel, args, kwargs = launch

    def median_milliseconds(config: TritonConfig) -> float:
        return kernel._bench(*args, config=config, **kwargs)[0]

    from triton.testing import do_bench

    with _benchmark_temporarily_replaced(kernel, partial(do_bench, **FIRST_PASS)):
        first = {config: median_milliseconds(config) for config in candidates}
    ranked = sorted(candidates, key=lambda config: first[config])
    finalists = [c for c in ranked[:FINALISTS] if first[c] <= FINALIST_RATIO * first[ranked[0]]]
    best = finalists[0]
    if len(finalists) > 1:
        with _benchmark_temporarily_replaced(kernel, partial(do_bench, **LAST_PASS)):
            best = min(finalists, key=median_milliseconds)
    kernel.pre_hook({**launch.arguments, **best.all_kwargs()}, reset_only=True)
    return best


def pick_runnable_low_spill_else_last_candidate(
    launch: KernelLaunch, candidates: Sequence[TritonConfig]
) -> TritonConfig:
    """Returns the first candidate that this GPU has the resources for; the last if none has.

    One that keeps more than `LARGEST_SPILL` registers in memory does not count, unless all do: then
    it is the one with the fewest. Arguments that the kernel adds to are reset, as before the first
    launch.
    """
    kernel, args, kwargs = launch
    spills: dict[TritonConfig, int] = {}
    with _benchmark_temporarily_replaced(kernel, _launch_once_untimed):
        for config in candidates:
            if kernel._bench(*args, config=config, **kwargs)[0] < math.inf:
                spills[config] = _count_spilled_registers(launch, config)
                if spills[config] <= LARGEST_SPILL:
                    break
    config = min(spills, key=spills.__getitem__, default=candidates[-1])
    kernel.pre_hook({**launch.arguments, **config.all_kwargs()}, reset_only=True)
    return config


def _count_spilled_registers(launch: KernelLaunch, config: TritonConfig) -> int:
    """Registers of a thread that a candidate keeps in memory; it has been launched before."""
    options = {**launch.kwargs, **config.all_kwargs(), "warmup": True}
    compiled: Any = launch.kernel.fn.run(*launch.args, **options)
    return getattr(compiled, "n_spills", None) or 0


def _launch_once_untimed(launch: Callable[[], Any], quantiles: Sequence[float]) -> list[float]:
    """Stands in for Triton's `do_bench` where only it matters whether a launch works."""
    launch()
    return [0.0 for _ in quantiles]


@contextmanager
def _benchmark_temporarily_replaced(
    kernel: TritonAutotuner, benchmark: Callable[..., Any]
) -> Iterator[None]:
    """Makes `kernel` time its candidates with `benchmark`, inside."""
    before = kernel.do_bench
    kernel.do_bench = benchmark
    try:
        yield
    finally:
        kernel.do_bench = before
