"""A kernel's configuration is found where it was kept, tuned once, and the same after a restart.

What runs on a GPU is in `tests/gpu`.
"""

import math
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from flame_accel.config import UserError
from flame_accel.kernels.tuning import Gpu, Tuner, tuned_configs
from flame_accel.kernels.tuning.tuner import _launch_once_untimed
from tests.helpers.fake_kernels import GPU, FakeKernel, choose_block

SECONDS = {16: 4.0, 32: 1.0, 64: 1.05, 128: math.inf}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped configurations, empty at first."""
    folder = tmp_path / "shipped"
    monkeypatch.setattr(
        tuned_configs, "shipped_configs_folder", lambda capability: folder / capability
    )
    return folder / GPU.capability


def test_all_candidates_compile_first_and_the_fastest_wins(tmp_path):
    kernel = FakeKernel(SECONDS)
    assert choose_block(Tuner(GPU, tmp_path), kernel) == 32
    assert kernel.compiled == [16, 32, 64, 128]
    # all are timed once, then those that come close to the fastest
    assert kernel.timed == [16, 32, 64, 128, 32, 64]
    assert kernel.reset == [32]
    assert kernel.do_bench is None


def test_what_was_tuned_is_found_by_the_next_process(tmp_path):
    choose_block(Tuner(GPU, tmp_path), FakeKernel(SECONDS))
    kernel = FakeKernel({**SECONDS, 16: 0.1})
    assert choose_block(Tuner(GPU, tmp_path), kernel) == 32
    assert kernel.timed == []
    assert choose_block(Tuner(GPU, tmp_path), kernel, width=128) == 16


def test_tuned_configurations_belong_to_one_kind_of_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAME_ACCEL_CACHE", str(tmp_path))
    choose_block(Tuner(GPU), FakeKernel(SECONDS))
    kernel = FakeKernel({**SECONDS, 16: 0.1})
    assert choose_block(Tuner(GPU), kernel) == 32
    assert choose_block(Tuner(Gpu("NVIDIA_Other", GPU.capability)), kernel) == 16


def test_ragged_batches_do_not_tune_again(tmp_path):
    tuner = Tuner(GPU, tmp_path)
    kernel = FakeKernel(SECONDS)
    choose_block(tuner, kernel, tokens=4096)
    timed = len(kernel.timed)
    for tokens in (4095, 3000, 2049):
        assert choose_block(tuner, kernel, tokens=tokens) == 32
    assert len(kernel.timed) == timed
    choose_block(tuner, kernel, tokens=2048)
    choose_block(tuner, kernel, tokens=4096, width=65)
    assert len(kernel.timed) > 2 * timed


def test_a_restart_makes_the_choices_of_the_run(tmp_path):
    tuner = Tuner(GPU, tmp_path / "cache")
    tuner.run_folder = tmp_path / "run"
    first = choose_block(tuner, FakeKernel(SECONDS), tokens=4000)
    other = Tuner(GPU, tmp_path / "another machine's cache")
    other.run_folder = tmp_path / "run"
    faster_now = FakeKernel({**SECONDS, 64: 0.1})
    choose_block(Tuner(GPU, tmp_path / "another machine's cache"), faster_now, tokens=4000)
    assert choose_block(other, faster_now, tokens=4000) == first == 32


def test_the_users_own_tuning_comes_before_what_is_shipped(tmp_path, shipped):
    choose_block(Tuner(GPU, shipped), FakeKernel(SECONDS))
    kernel = FakeKernel({**SECONDS, 16: 0.1})
    assert choose_block(Tuner(GPU, tmp_path / "mine"), kernel) == 32
    assert kernel.timed == []
    assert choose_block(Tuner(GPU, tmp_path / "mine", fresh=True), kernel) == 16
    assert choose_block(Tuner(GPU, tmp_path / "mine"), kernel) == 16


def test_what_is_shipped_serves_every_gpu_of_the_capability(tmp_path, shipped):
    choose_block(Tuner(GPU, shipped), FakeKernel(SECONDS))
    kernel = FakeKernel({**SECONDS, 16: 0.1})
    assert choose_block(Tuner(Gpu("NVIDIA_Other", GPU.capability), tmp_path / "a"), kernel) == 32
    assert kernel.timed == []
    assert choose_block(Tuner(Gpu("NVIDIA_Other", "sm_01"), tmp_path / "b"), kernel) == 16


def test_what_is_no_candidate_any_more_is_tuned_again(tmp_path):
    choose_block(Tuner(GPU, tmp_path), FakeKernel(SECONDS))
    newer = FakeKernel({16: 4.0, 256: 1.0})
    assert choose_block(Tuner(GPU, tmp_path), newer) == 256
    assert newer.timed


def test_processes_that_meet_a_kernel_together_tune_it_once(tmp_path):
    kernels = [FakeKernel(SECONDS) for _ in range(4)]
    tuners = [Tuner(GPU, tmp_path) for _ in kernels]
    pairs = zip(tuners, kernels, strict=True)
    threads = [threading.Thread(target=choose_block, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(kernel.timed) for kernel in kernels) == [0, 0, 0, 6]


def test_without_tuning_the_first_candidate_that_runs_is_taken(tmp_path):
    kernel = FakeKernel({128: math.inf, 16: 4.0, 32: 1.0})
    assert choose_block(Tuner(GPU, tmp_path, tunes=False), kernel) == 16
    assert kernel.timed == [128, 16]
    assert kernel.compiled == [16]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spills", "chosen"),
    [({16: 4100}, 32), ({16: 200, 32: 0}, 16), ({16: 900, 32: 700, 64: 800}, 32)],
)
def test_without_tuning_no_candidate_that_keeps_its_registers_in_memory_is_taken(
    tmp_path, spills, chosen
):
    kernel = FakeKernel(SECONDS)
    kernel.spills = spills
    assert choose_block(Tuner(GPU, tmp_path, tunes=False), kernel) == chosen
    assert kernel.reset == [chosen]


def test_without_tuning_the_nearest_configuration_is_taken(tmp_path, shipped):
    for width, best in ((64, 32), (1024, 64)):
        seconds = {**SECONDS, best: 0.1}
        choose_block(Tuner(GPU, shipped, fresh=True), FakeKernel(seconds), width=width)
    for width, expected in ((32, 32), (100, 32), (512, 64), (4096, 64)):
        kernel = FakeKernel(SECONDS)
        tuner = Tuner(GPU, tmp_path / "mine", tunes=False)
        assert choose_block(tuner, kernel, width=width) == expected
        assert kernel.timed == [expected]


def test_a_nearest_configuration_that_does_not_run_is_skipped(tmp_path, shipped):
    choose_block(Tuner(GPU, shipped, fresh=True), FakeKernel(SECONDS))
    kernel = FakeKernel({**SECONDS, 32: math.inf})
    assert choose_block(Tuner(GPU, tmp_path / "mine", tunes=False), kernel, width=128) == 16
    assert kernel.timed == [32, 16]


def test_a_restart_keeps_configurations_that_were_not_tuned(tmp_path, shipped):
    choose_block(Tuner(GPU, shipped, fresh=True), FakeKernel(SECONDS))
    for tunes, seconds in ((False, SECONDS), (True, {**SECONDS, 64: 0.1})):
        tuner = Tuner(GPU, tmp_path / "mine", tunes=tunes)
        tuner.run_folder = tmp_path / "run"
        assert choose_block(tuner, FakeKernel(seconds), width=128) == 32
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"autotune_entries": {"a": {}}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "imaginary_kernel.json").write_text(text)
    with pytest.raises(UserError, match=r"imaginary_kernel\.json"):
        choose_block(Tuner(GPU, tmp_path), FakeKernel(SECONDS))


def test_a_candidate_is_launched_once_to_see_whether_it_runs():
    launch = SimpleNamespace(count=0)

    def run():
        launch.count += 1

    assert _launch_once_untimed(run, quantiles=(0.5, 0.2, 0.8)) == [0.0, 0.0, 0.0]
    assert launch.count == 1
