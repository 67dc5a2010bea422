"""Laws of profiling: whole files of the steps asked for, and nothing where nothing is asked for."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flame_accel.config import ProfilingConfig, UserError
from flame_accel.observe import profile_steps

CPU = SimpleNamespace(device=torch.device("cpu"), process_index=0)
SECOND_GPU = SimpleNamespace(device=torch.device("cuda", 1), process_index=1)


def files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()
    )


def trace(path: Path) -> dict[str, Any]:
    return json.loads(gzip.decompress(path.read_bytes()))


def multiply(size: int) -> None:
    torch.ones(size, size) @ torch.ones(size, size)


def products(path: Path) -> int:
    return [event["name"] for event in trace(path)["traceEvents"]].count("aten::mm")


@pytest.mark.covers_option("profiling.profile_freq")
@pytest.mark.parametrize(
    ("every", "start", "expected"),
    [(1, 0, [1, 2, 3, 4, 5, 6, 7]), (2, 0, [2, 4, 6]), (3, 4, [6, 9]), (5, 4, [5, 10])],
)
def test_every_so_many_steps_of_the_run_have_a_trace_of_that_step(tmp_path, every, start, expected):
    config = ProfilingConfig(enable_profiling=True, profile_freq=every)
    with profile_steps(CPU, config, tmp_path, step=start) as profiler:
        for step in range(start + 1, start + 8):
            for _ in range(step):
                multiply(4)
            profiler.step()
    folder = tmp_path / "profile_traces"
    assert files(folder) == sorted(f"step-{step}/rank-0.json.gz" for step in expected)
    for step in expected:
        assert products(folder / f"step-{step}/rank-0.json.gz") == step


@pytest.mark.covers_option("profiling.enable_profiling", "profiling.save_traces_folder")
def test_a_run_leaves_traces_that_open_in_the_folder_that_was_named(train_here, flags, tmp_path):
    train_here(
        flags(
            **{
                "profiling.enable_profiling": True,
                "profiling.profile_freq": 4,
                "profiling.save_traces_folder": "time/traces",
            }
        )
    )
    folder = tmp_path / "run/time/traces"
    assert files(folder) == ["step-4/rank-0.json.gz", "step-8/rank-0.json.gz"]
    names = {event["name"] for event in trace(folder / "step-8/rank-0.json.gz")["traceEvents"]}
    assert {"aten::mm", "autograd::engine::evaluate_function: MmBackward0"} <= names


def test_without_options_nothing_is_recorded(train_here, flags, tmp_path, monkeypatch):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("profiling was not asked for")

    monkeypatch.setattr("flame_accel.observe.profiling.profile", refuse)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", refuse)
    with profile_steps(CPU, ProfilingConfig(), tmp_path, step=0) as profiler:
        assert profiler.recorders == []
    train_here(flags(**{"training.steps": 2, "evaluation.sample_tokens": 0}))
    assert not (tmp_path / "run/profile_traces").exists()
    assert not (tmp_path / "run/memory_snapshot").exists()


def test_a_run_that_fails_within_a_traced_step_leaves_no_half_file(tmp_path):
    config = ProfilingConfig(enable_profiling=True, profile_freq=2)
    with (
        pytest.raises(KeyboardInterrupt),
        profile_steps(CPU, config, tmp_path, step=0) as profiler,
    ):
        for _ in range(3):
            multiply(4)
            profiler.step()
        multiply(4)
        raise KeyboardInterrupt
    assert files(tmp_path) == ["profile_traces/step-2/rank-0.json.gz"]


def test_a_trace_that_cannot_be_written_leaves_no_half_file(tmp_path, monkeypatch):
    def fail(self: torch.profiler.profile, path: str) -> None:
        Path(path).write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", fail)
    config = ProfilingConfig(enable_profiling=True, profile_freq=1)
    with (
        pytest.raises(OSError, match="no space"),
        profile_steps(CPU, config, tmp_path, step=0) as profiler,
    ):
        profiler.step()
    assert files(tmp_path) == []


def test_memory_snapshots_of_a_cpu_are_refused(train_here, flags, tmp_path):
    with pytest.raises(UserError, match="this run is on cpu") as raised:
        train_here(flags(**{"profiling.enable_memory_snapshot": True}))
    assert "profiling.enable_memory_snapshot" in str(raised.value)
    assert not (tmp_path / "run/memory_snapshot").exists()


@pytest.fixture
def allocator(monkeypatch):
    """What CUDA's allocator is told; its snapshots are texts."""
    told: list[Any] = []

    def record(enabled: str | None = "all", max_entries: int = 0) -> None:
        told.append(enabled)

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", record)
    monkeypatch.setattr(
        torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_text("snapshot")
    )
    return told


MEMORY = ProfilingConfig(
    enable_memory_snapshot=True, profile_freq=2, save_memory_snapshot_folder="memory"
)


@pytest.mark.covers_option(
    "profiling.enable_memory_snapshot", "profiling.save_memory_snapshot_folder"
)
def test_memory_snapshots_are_taken_every_so_many_steps(tmp_path, allocator):
    with profile_steps(SECOND_GPU, MEMORY, tmp_path, step=3) as profiler:
        for _ in range(4):
            profiler.step()
    assert files(tmp_path / "memory") == ["step-4/rank-1.pickle", "step-6/rank-1.pickle"]
    assert allocator == ["all", None]


def test_a_run_out_of_memory_leaves_a_snapshot_and_the_error(tmp_path, allocator):
    with (
        pytest.raises(torch.OutOfMemoryError, match="tried to allocate"),
        profile_steps(SECOND_GPU, MEMORY, tmp_path, step=0) as profiler,
    ):
        profiler.step()
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")
    assert files(tmp_path / "memory") == ["step-2-out-of-memory/rank-1.pickle"]
    assert allocator == ["all", None]


def test_another_error_leaves_no_snapshot(tmp_path, allocator):
    with (
        pytest.raises(ValueError, match="something else"),
        profile_steps(SECOND_GPU, MEMORY, tmp_path, step=0) as profiler,
    ):
        profiler.step()
        raise ValueError("something else")
    assert files(tmp_path) == []
    assert allocator == ["all", None]
