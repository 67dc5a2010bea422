"""Triton's autotuner asks the active tuner for fla's kernels, and for no others."""

import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from triton.runtime.autotuner import Autotuner

from flame_accel.kernels.tuning import Tuner, autotune_hook
from tests.helpers.fake_kernels import GPU, FakeKernel

SECONDS = {16: 4.0, 32: 1.0}
X = SimpleNamespace(dtype="torch.float32")


@pytest.fixture
def launched(monkeypatch):
    """Kernels in the order in which Triton launches them; no hook is installed before or after."""
    kernels = []
    monkeypatch.setattr(Autotuner, "run", lambda kernel, *args, **kwargs: kernels.append(kernel))
    monkeypatch.setattr(autotune_hook, "_active", None)
    monkeypatch.setattr(autotune_hook, "_original_run", None)
    yield kernels
    autotune_hook.uninstall_autotune_hook()


def chosen_blocks(kernel):
    return [config.kwargs["BT"] for config in kernel.cache.values()]


def test_only_flas_kernels_are_led_to_the_tuner(tmp_path, launched):
    flas, another = FakeKernel(SECONDS), FakeKernel(SECONDS)
    another.base_fn = SimpleNamespace(__name__="kernel", __module__="elsewhere")
    autotune_hook.install_autotune_hook(Tuner(GPU, tmp_path))
    for kernel in (flas, flas, another):
        Autotuner.run(kernel, X, 4096, D=64, grid=(1,), warmup=False)
    assert launched == [flas, flas, another]
    assert list(flas.cache) == [(4096, 64, "torch.float32")]
    assert flas.timed == [16, 32]
    assert another.timed == []


def test_what_was_chosen_without_tuning_is_forgotten(tmp_path, launched):
    kernel = FakeKernel(SECONDS)
    tuner = autotune_hook.install_autotune_hook(Tuner(GPU, tmp_path))
    with autotune_hook.disable_tuning_then_forget_choices_made():
        Autotuner.run(kernel, X, 4096, 64, grid=(1,), warmup=False)
        assert chosen_blocks(kernel) == [16]
    assert kernel.cache == {}
    Autotuner.run(kernel, X, 4096, 64, grid=(1,), warmup=False)
    assert chosen_blocks(kernel) == [32]
    assert list(tuner.tuned) == ["imaginary_kernel"]


def test_what_was_chosen_before_is_kept_where_tuning_is_disabled(tmp_path, launched):
    kernel = FakeKernel(SECONDS)
    autotune_hook.install_autotune_hook(Tuner(GPU, tmp_path))
    Autotuner.run(kernel, X, 4096, 64, grid=(1,), warmup=False)
    with autotune_hook.disable_tuning_then_forget_choices_made():
        Autotuner.run(kernel, X, 4096, 64, grid=(1,), warmup=False)
    assert chosen_blocks(kernel) == [32]


def test_a_runs_choices_are_written_to_its_folder(tmp_path, launched):
    autotune_hook.install_autotune_hook(Tuner(GPU, tmp_path / "cache"))
    autotune_hook.keep_configs_in_run_folder(tmp_path / "run/tuning")
    Autotuner.run(FakeKernel(SECONDS), X, 4096, 64, grid=(1,), warmup=False)
    assert (tmp_path / "run/tuning" / GPU.name / "imaginary_kernel.json").is_file()


@pytest.mark.parametrize("option, block", [("never", 16), ("auto", 16), ("always", 32)])
@pytest.mark.covers_option("model.tune_kernels")
def test_tune_kernels_decides_whether_a_short_run_tunes(tmp_path, launched, caplog, option, block):
    kernel = FakeKernel(SECONDS)
    autotune_hook.install_autotune_hook(Tuner(GPU, tmp_path))
    with caplog.at_level(logging.INFO, logger="flame_accel"):
        autotune_hook.apply_tune_kernels_option(option, flops_per_token=6e6, total_tokens=1_000_000)
    Autotuner.run(kernel, X, 4096, 64, grid=(1,), warmup=False)
    assert chosen_blocks(kernel) == [block]
    assert "--model.tune_kernels" in caplog.text


def test_nothing_happens_where_triton_does_not_run(tmp_path, launched, caplog):
    with (
        caplog.at_level(logging.INFO, logger="flame_accel"),
        autotune_hook.disable_tuning_then_forget_choices_made(),
    ):
        autotune_hook.apply_tune_kernels_option(
            "always", flops_per_token=None, total_tokens=1_000_000
        )
        autotune_hook.keep_configs_in_run_folder(tmp_path)
    assert caplog.text == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("world_size, tunes", [("1", True), ("8", False)])
def test_more_devices_shorten_the_run(tmp_path, launched, monkeypatch, world_size, tunes):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    tuner = autotune_hook.install_autotune_hook(Tuner(GPU, tmp_path))
    autotune_hook.apply_tune_kernels_option("auto", flops_per_token=1e9, total_tokens=1_000_000_000)
    assert tuner.tunes == tunes
