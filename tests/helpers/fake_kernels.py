"""Kernels played by objects with the parts of Triton's autotuner that the tuner touches."""

from types import SimpleNamespace
from typing import Any

from triton import Config

from flame_accel.kernels.tuning import Gpu, Tuner
from flame_accel.kernels.tuning.tuner import KernelLaunch

GPU = Gpu("NVIDIA_Imaginary", "sm_00")


class FakeKernel:
    """A candidate for each BT; `seconds` that it takes, infinite where it has no resources."""

    def __init__(self, seconds: dict[int, float], keys: tuple[str, ...] = ("T", "D")) -> None:
        self.seconds = seconds
        self.configs = [Config({"BT": bt}, num_warps=4, num_stages=2) for bt in seconds]
        self.arg_names = ["x", "T", "D"]
        self.keys = list(keys)
        self.base_fn = SimpleNamespace(__name__="imaginary_kernel", __module__="fla.ops.imaginary")
        self.fn = SimpleNamespace(run=self.compile)
        self.cache: dict[Any, Config] = {}
        self.compiled: list[int] = []
        self.spills: dict[int, int] = {}
        """Registers in memory by BT, where there are any."""
        self.timed: list[int] = []
        self.reset: list[int] = []
        self.do_bench = None

    def prune_configs(self, kwargs: dict[str, Any]) -> list[Config]:
        return self.configs

    def compile(self, *args: Any, **kwargs: Any) -> SimpleNamespace:
        assert kwargs["warmup"]
        self.compiled.append(kwargs["BT"])
        return SimpleNamespace(n_spills=self.spills.get(kwargs["BT"]))

    def _bench(self, *args: Any, config: Config, **kwargs: Any) -> list[float]:
        self.timed.append(config.kwargs["BT"])
        return [self.seconds[config.kwargs["BT"]]] * 3

    def pre_hook(self, arguments: dict[str, Any], reset_only: bool) -> None:
        self.reset.append(arguments["BT"])


def choose_block(
    tuner: Tuner,
    kernel: FakeKernel,
    tokens: int = 4096,
    width: int = 64,
    dtype: str = "torch.float32",
) -> int:
    """The BT that a tuner chooses for a launch."""
    arguments = (object(), tokens, width)
    launch = KernelLaunch(kernel, arguments, {"grid": (1,), "warmup": False})
    return tuner.load_tune_or_pick_and_save_config(launch, (tokens, width, dtype)).kwargs["BT"]
