"""A kernel's configuration is found where it was kept, tuned once, and the same after a restart.

Kernels are played by objects with the parts of Triton's autotuner that the tuner touches; what runs
on a GPU is in `gpu/test_runs.py`.
"""

import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

from triton import Config

from flame_accel import kernels
from flame_accel.__main__ import main
from flame_accel.config import UserError
from flame_accel.kernels.tuning import Tuner, autotune_hook, shipped_folder, tuned_configs

GPU = "NVIDIA_Imaginary"


class Kernel:
    """Four candidates; `seconds` of each by its BT, infinite where it has no resources."""

    def __init__(self, seconds: dict[int, float], keys: tuple[str, ...] = ("T", "D")) -> None:
        self.seconds = seconds
        self.configs = [Config({"BT": bt}, num_warps=4, num_stages=2) for bt in seconds]
        self.arg_names = ["x", "T", "D"]
        self.keys = list(keys)
        self.base_fn = SimpleNamespace(__name__="imaginary_kernel", __module__="fla.ops.imaginary")
        self.fn = SimpleNamespace(run=self.compile)
        self.cache: dict[Any, Config] = {}
        self.compiled: list[int] = []
        self.timed: list[int] = []
        self.reset: list[int] = []
        self.do_bench = None

    def prune_configs(self, kwargs: dict[str, Any]) -> list[Config]:
        return self.configs

    def compile(self, *args: Any, **kwargs: Any) -> None:
        assert kwargs["warmup"]
        self.compiled.append(kwargs["BT"])

    def _bench(self, *args: Any, config: Config, **kwargs: Any) -> list[float]:
        self.timed.append(config.kwargs["BT"])
        return [self.seconds[config.kwargs["BT"]]] * 3

    def pre_hook(self, arguments: dict[str, Any], reset_only: bool) -> None:
        self.reset.append(arguments["BT"])


SECONDS = {16: 4.0, 32: 1.0, 64: 1.05, 128: math.inf}


def choose(tuner: Tuner, kernel: Kernel, tokens: int = 4096, width: int = 64) -> int:
    key = (tokens, width, "torch.float32")
    arguments = (object(), tokens, width)
    return tuner.choose(kernel, key, arguments, {"grid": (1,), "warmup": False}).kwargs["BT"]


def test_all_candidates_compile_first_and_the_fastest_wins(tmp_path):
    kernel = Kernel(SECONDS)
    assert choose(Tuner(GPU, tmp_path), kernel) == 32
    assert kernel.compiled == [16, 32, 64, 128]
    # all are timed once, then those that come close to the fastest
    assert kernel.timed == [16, 32, 64, 128, 32, 64]
    assert kernel.reset == [32]
    assert kernel.do_bench is None


def test_what_was_tuned_is_found_by_the_next_process(tmp_path):
    choose(Tuner(GPU, tmp_path), Kernel(SECONDS))
    kernel = Kernel({**SECONDS, 16: 0.1})
    assert choose(Tuner(GPU, tmp_path), kernel) == 32
    assert kernel.timed == []
    assert choose(Tuner(GPU, tmp_path), kernel, width=128) == 16
    assert choose(Tuner("NVIDIA_Other", tmp_path), kernel) == 16


def test_ragged_batches_do_not_tune_again(tmp_path):
    tuner = Tuner(GPU, tmp_path)
    kernel = Kernel(SECONDS)
    choose(tuner, kernel, tokens=4096)
    timed = len(kernel.timed)
    for tokens in (4095, 3000, 2049):
        assert choose(tuner, kernel, tokens=tokens) == 32
    assert len(kernel.timed) == timed
    choose(tuner, kernel, tokens=2048)
    choose(tuner, kernel, tokens=4096, width=65)
    assert len(kernel.timed) > 2 * timed


def test_a_restart_makes_the_choices_of_the_run(tmp_path):
    tuner = Tuner(GPU, tmp_path / "cache")
    tuner.run_folder = tmp_path / "run"
    first = choose(tuner, Kernel(SECONDS), tokens=4000)
    other = Tuner(GPU, tmp_path / "another machine's cache")
    other.run_folder = tmp_path / "run"
    faster_now = Kernel({**SECONDS, 64: 0.1})
    choose(Tuner(GPU, tmp_path / "another machine's cache"), faster_now, tokens=4000)
    assert choose(other, faster_now, tokens=4000) == first == 32


def test_the_users_own_tuning_comes_before_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned_configs, "shipped_folder", lambda gpu: tmp_path / "shipped" / gpu)
    kernel = Kernel({**SECONDS, 16: 0.1})
    choose(Tuner(GPU, tmp_path / "shipping"), Kernel(SECONDS))
    (tmp_path / "shipping").rename(tmp_path / "shipped")
    assert choose(Tuner(GPU, tmp_path / "mine"), kernel) == 32
    assert kernel.timed == []
    assert choose(Tuner(GPU, tmp_path / "mine", fresh=True), kernel) == 16
    assert choose(Tuner(GPU, tmp_path / "mine"), kernel) == 16


def test_what_is_no_candidate_any_more_is_tuned_again(tmp_path):
    choose(Tuner(GPU, tmp_path), Kernel(SECONDS))
    newer = Kernel({16: 4.0, 256: 1.0})
    assert choose(Tuner(GPU, tmp_path), newer) == 256
    assert newer.timed


def test_processes_that_meet_a_kernel_together_tune_it_once(tmp_path):
    kernels = [Kernel(SECONDS) for _ in range(4)]
    tuners = [Tuner(GPU, tmp_path) for _ in kernels]
    threads = [
        threading.Thread(target=choose, args=pair) for pair in zip(tuners, kernels, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(kernel.timed) for kernel in kernels) == [0, 0, 0, 6]


def test_an_impatient_tuner_takes_what_runs_and_keeps_nothing(tmp_path):
    kernel = Kernel({128: math.inf, 16: 4.0, 32: 1.0})
    assert choose(Tuner(GPU, tmp_path, patient=False), kernel) == 16
    assert kernel.timed == [128, 16]
    assert list(tmp_path.iterdir()) == []


def test_what_was_chosen_without_tuning_is_forgotten(tmp_path, monkeypatch):
    from triton.runtime.autotuner import Autotuner

    monkeypatch.setattr(Autotuner, "run", lambda kernel, *args, **kwargs: None)
    monkeypatch.setattr(autotune_hook, "_active", None)
    monkeypatch.setattr(autotune_hook, "_original", None)
    kernel = Kernel({16: 4.0, 32: 1.0})
    launch = SimpleNamespace(dtype="torch.float32"), 4096, 64
    patient = autotune_hook.install_hook(Tuner(GPU, tmp_path))
    with autotune_hook.untuned():
        Autotuner.run(kernel, *launch, grid=(1,), warmup=False)
        assert [config.kwargs["BT"] for config in kernel.cache.values()] == [16]
    assert kernel.cache == {}
    Autotuner.run(kernel, *launch, grid=(1,), warmup=False)
    assert [config.kwargs["BT"] for config in kernel.cache.values()] == [32]
    assert list(patient.tuned) == ["imaginary_kernel"]
    autotune_hook.uninstall_hook()


def test_fla_reads_what_was_tuned(tmp_path, monkeypatch):
    from fla.ops.utils import cache

    choose(Tuner(GPU, tmp_path), Kernel(SECONDS))
    monkeypatch.setattr(cache, "FLA_CACHE_MODE", cache.FlaCacheMode.STRICT)
    monkeypatch.setenv("FLA_CONFIG_DIR", str(tmp_path / GPU))
    key = cache.AutotuneKey((4096, 64, "torch.float32"))
    config = cache.load_cached_config("imaginary_kernel", key)
    assert config is not None
    assert (config["kwargs"], config["num_warps"], config["num_stages"]) == ({"BT": 32}, 4, 2)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"autotune_entries": {"a": {}}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    folder = tmp_path / GPU
    folder.mkdir(parents=True)
    (folder / "imaginary_kernel.json").write_text(text)
    with pytest.raises(UserError, match=r"imaginary_kernel\.json"):
        choose(Tuner(GPU, tmp_path), Kernel(SECONDS))


def test_the_door_leads_flas_kernels_to_the_tuner_and_no_others(tmp_path, monkeypatch):
    from triton.runtime.autotuner import Autotuner

    launched = []
    monkeypatch.setattr(Autotuner, "run", lambda kernel, *args, **kwargs: launched.append(kernel))
    monkeypatch.setattr(autotune_hook, "_active", None)
    monkeypatch.setattr(autotune_hook, "_original", None)
    flas, another = Kernel(SECONDS), Kernel(SECONDS)
    another.base_fn = SimpleNamespace(__name__="kernel", __module__="elsewhere")
    x = SimpleNamespace(dtype="torch.float32")
    autotune_hook.install_hook(Tuner(GPU, tmp_path))
    for kernel in (flas, flas, another):
        Autotuner.run(kernel, x, 4096, D=64, grid=(1,), warmup=False)
    autotune_hook.uninstall_hook()
    assert launched == [flas, flas, another]
    assert list(flas.cache) == [(4096, 64, "torch.float32")]
    assert len(flas.timed) == 6
    assert another.timed == []


@pytest.mark.skipif(kernels.triton_has_device(), reason="needs a machine without a Triton device")
def test_tuning_is_refused_where_nothing_can_be_tuned(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["tune", "--model.config", "configs/gla_1M.json"])
    assert caught.value.code == 1
    assert "no Triton device" in capsys.readouterr().err


def test_shipped_configurations_are_of_kernels_that_fla_has():
    import fla

    source = "".join(p.read_text() for p in Path(fla.__file__).parent.rglob("*.py"))
    files = list(shipped_folder("").rglob("*.json"))
    assert files
    for path in files:
        content = json.loads(path.read_text())
        assert f"def {path.stem}(" in source, path
        for digest, entry in content["autotune_entries"].items():
            assert tuned_configs._hash(entry["autotune_key"]) == digest
            assert set(entry["config"]) >= {"kwargs", "num_warps", "num_stages", "num_ctas"}
