"""A checkpoint that is written while training goes on is the one that a waiting run writes."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.checkpoint import host_copies
from flame_accel.checkpoint import saver as saver_module
from flame_accel.checkpoint.background import BackgroundThread
from flame_accel.checkpoint.saver import check_async_mode
from flame_accel.config import UsageError
from flame_accel.observe import MetricLogger
from flame_accel.observe.watchdog import EXIT_CODE
from flame_accel.stop_signals import StoppedBySignal, StopSignals
from tests.helpers.checkpoints import digests_of_all_files, list_checkpoints
from tests.helpers.runs import (
    ROOT,
    WITHOUT_SAMPLE,
    launch,
    launch_environment,
    model_digests,
    read_log,
    read_losses,
    read_records,
)

Train = Callable[[list[str]], None]
Flags = Callable[..., list[str]]
OFTEN = {
    **WITHOUT_SAMPLE,
    "checkpoint.interval": 2,
    "checkpoint.keep_latest_k": 0,
    "checkpoint.async_mode": "async",
}
AUTO = {**OFTEN, "checkpoint.async_mode": "auto"}
WAIT_SECONDS = 60


class Steps:
    """Lets a write wait until the run has recorded a step, and calls something at steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded = 0
        self.changed = threading.Condition()
        self.at_step: dict[int, Callable[[], object]] = {}
        log_record = MetricLogger.log_and_write_record

        def log_and_notify(logger: MetricLogger, record: dict[str, float], **options: int) -> None:
            log_record(logger, record, **options)
            with self.changed:
                self.recorded = int(record["step"])
                self.changed.notify_all()
            self.at_step.get(self.recorded, lambda: None)()

        monkeypatch.setattr(MetricLogger, "log_and_write_record", log_and_notify)

    def wait_for(self, step: int) -> None:
        """Waits, in the thread that writes."""
        assert threading.current_thread() is not threading.main_thread()
        with self.changed:
            assert self.changed.wait_for(lambda: self.recorded >= step, WAIT_SECONDS)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def hold_writes(monkeypatch: pytest.MonkeyPatch, hold: Callable[[int], object]) -> None:
    """Calls `hold` with the step of each checkpoint before it is written."""
    write = saver_module.write_snapshot

    def held(snapshot, *arguments, **options):
        hold(snapshot.step)
        return write(snapshot, *arguments, **options)

    monkeypatch.setattr(saver_module, "write_snapshot", held)


@pytest.fixture
def waiting(train_here: Train, flags: Flags, tmp_path: Path) -> Path:
    """The folder of a run that waits for its writes, with checkpoints of steps 2, 4, 6 and 8."""
    train_here(
        flags(**OFTEN | {"job.dump_folder": tmp_path / "w", "checkpoint.async_mode": "disabled"})
    )
    return tmp_path / "w"


@pytest.mark.covers_option("checkpoint.async_mode")
def test_steps_that_are_taken_during_the_write_change_no_byte_of_it(
    train_here, flags, tmp_path, waiting, steps, monkeypatch
):
    hold_writes(monkeypatch, lambda step: steps.wait_for(step + 2) if step < 8 else None)
    train_here(flags(**OFTEN))
    run = tmp_path / "run"
    assert "written while training goes on" in read_log(run)
    assert "checkpoints: written while training waits (checkpoint.async_mode" in read_log(waiting)
    names = ["step-2", "step-4", "step-6", "step-8"]
    assert list_checkpoints(run) == list_checkpoints(waiting) == names
    for name in names:
        written = digests_of_all_files(run / "checkpoint" / name)
        assert written == digests_of_all_files(waiting / "checkpoint" / name)
        assert "optimizer/shard-00001-model-00001-of-00001.safetensors" in written
    assert read_losses(run) == read_losses(waiting)


def test_all_saves_the_last_one_too_are_made_from_the_same_memory(train_here, flags, monkeypatch):
    addresses: list[list[int]] = []
    write = saver_module.write_snapshot

    def noted(snapshot, *arguments, **options):
        tensors = {**snapshot.weights, **snapshot.training_state.optimizer_shard.tensors}
        addresses.append([tensor.data_ptr() for tensor in tensors.values()])
        return write(snapshot, *arguments, **options)

    monkeypatch.setattr(saver_module, "write_snapshot", noted)
    train_here(flags(**OFTEN))
    assert len(addresses) == 4
    assert all(each == addresses[0] for each in addresses)


def test_tied_weights_are_written_once(train_here, flags, tmp_path, tiny_model, steps, monkeypatch):
    tied = tmp_path / "tied.json"
    tied.write_text(json.dumps(json.loads(tiny_model.read_text()) | {"tie_word_embeddings": True}))
    hold_writes(monkeypatch, lambda step: steps.wait_for(step + 2) if step < 8 else None)
    digests = []
    for mode in ("async", "disabled"):
        if mode == "disabled":
            monkeypatch.undo()
        folder = {"job.dump_folder": tmp_path / mode, "model.config": tied}
        train_here(flags(**OFTEN | folder | {"checkpoint.async_mode": mode}))
        digests.append(digests_of_all_files(tmp_path / mode / "checkpoint/step-4"))
    assert digests[0] == digests[1]


def test_one_checkpoint_is_in_flight_and_records_say_what_was_waited_for(
    train_here, flags, tmp_path, monkeypatch
):
    in_flight, most = [0], [0]
    write = saver_module.write_snapshot

    def counted(*arguments, **options):
        in_flight[0] += 1
        most[0] = max(most[0], in_flight[0])
        time.sleep(0.3)
        path = write(*arguments, **options)
        in_flight[0] -= 1
        return path

    monkeypatch.setattr(saver_module, "write_snapshot", counted)
    train_here(flags(**OFTEN | {"checkpoint.interval": 1}))
    assert most == [1] and in_flight == [0]
    assert len(list_checkpoints(tmp_path / "run")) == 8
    records = {record["step"]: record for record in read_records(tmp_path / "run")}
    assert "checkpoint/stall_seconds" not in records[1]
    # the first one waited for nothing, the next one for the first
    assert records[2]["checkpoint/stall_seconds"] < 0.3 <= records[4]["checkpoint/stall_seconds"]
    assert records[4]["checkpoint/write_seconds"] >= 0.3


def test_an_error_in_training_lets_the_write_finish(
    train_here, flags, tmp_path, waiting, steps, monkeypatch
):
    class Crash(Exception):
        pass

    def crash() -> None:
        raise Crash

    crashed = threading.Event()

    def hold(step: int) -> None:
        if step == 4:
            assert crashed.wait(WAIT_SECONDS)

    join = BackgroundThread.wait_or_log

    def note_and_join(thread: BackgroundThread, limit_seconds: float) -> None:
        crashed.set()
        join(thread, limit_seconds)

    monkeypatch.setattr(BackgroundThread, "wait_or_log", note_and_join)
    hold_writes(monkeypatch, hold)
    steps.at_step[5] = crash
    with pytest.raises(Crash):
        train_here(flags(**OFTEN))
    run = tmp_path / "run"
    assert list_checkpoints(run) == ["step-2", "step-4"]
    monkeypatch.undo()
    train_here(flags(**OFTEN))
    assert "continuing after step 4" in read_log(run)
    assert read_losses(run) == read_losses(waiting)
    assert model_digests(run / "hf") == model_digests(waiting / "hf")


def start_with_hung_write(
    options: list[str], *, step: int, long_phase_seconds: float = 1000
) -> subprocess.Popen[str]:
    """Starts a run that cannot write the whole checkpoint of a step."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/helpers/hung_write.py"), *options],
        env=launch_environment(STEP=str(step), LONG_PHASE_SECONDS=str(long_phase_seconds))
        | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_kill_during_a_write_leaves_the_checkpoint_before_it(
    train_here, flags, tmp_path, waiting
):
    run = tmp_path / "run"
    process = start_with_hung_write(flags(**OFTEN), step=4)
    deadline = time.monotonic() + WAIT_SECONDS
    while len(read_records(run)) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    [temporary] = (run / "checkpoint").glob("step-4.tmp-*")
    assert (temporary / "model.safetensors").is_file()
    train_here(flags(**OFTEN))
    assert "continuing after step 2" in read_log(run)
    assert list_checkpoints(run) == list_checkpoints(waiting)
    assert read_losses(run) == read_losses(waiting)
    assert model_digests(run / "hf") == model_digests(waiting / "hf")


def test_a_write_that_hangs_is_named_by_the_watchdog(flags):
    options = flags(**OFTEN | {"training.watchdog_seconds": 10})
    process = start_with_hung_write(options, step=4, long_phase_seconds=10)
    printed, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == EXIT_CODE, printed
    assert "after step 6, in phase write" in printed
    # among the stacks
    assert "in write_or_hang" in printed


def test_a_write_that_hangs_is_not_waited_for_when_an_error_ends_the_run(caplog):
    release = threading.Event()
    thread = BackgroundThread("the write")
    thread.start(release.wait)
    thread.wait_or_log(0.01)
    assert thread.is_busy
    release.set()
    thread.wait()
    assert not thread.is_busy


def test_a_signal_during_a_write_loses_no_step(
    train_here, flags, tmp_path, waiting, steps, monkeypatch
):
    deferred = StopSignals.deferred
    received: list[StopSignals] = []

    def note(signals: StopSignals, *, saves: bool):
        received.append(signals)
        return deferred(signals, saves=saves)

    def stop() -> None:
        received[0].received = signal.SIGTERM

    monkeypatch.setattr(StopSignals, "deferred", note)
    hold_writes(monkeypatch, lambda step: steps.wait_for(5) if step == 4 else None)
    steps.at_step[5] = stop
    with pytest.raises(StoppedBySignal) as stopped:
        train_here(flags(**OFTEN))
    run = tmp_path / "run"
    assert stopped.value.code == 0
    assert list_checkpoints(run) == ["step-2", "step-4", "step-5"]
    monkeypatch.undo()
    train_here(flags(**OFTEN))
    assert read_losses(run) == read_losses(waiting)
    assert model_digests(run / "hf") == model_digests(waiting / "hf")


def test_too_little_memory_for_a_copy_is_told_and_training_waits(
    train_here, flags, tmp_path, monkeypatch
):
    monkeypatch.setattr(saver_module, "DEVICES_THAT_WRITE", ())
    monkeypatch.setattr(host_copies, "available_host_bytes", lambda: 1000)
    monkeypatch.setattr(BackgroundThread, "start", lambda *_: pytest.fail("in the background"))
    train_here(flags(**AUTO))
    log = read_log(tmp_path / "run")
    assert "checkpoints: written while training waits (a copy of 0.00 GiB is too large for" in log


def test_training_waits_by_default_where_the_cores_that_train_would_write(
    train_here, flags, tmp_path, monkeypatch
):
    monkeypatch.setattr(BackgroundThread, "start", lambda *_: pytest.fail("in the background"))
    train_here(flags(**AUTO))
    assert "checkpoints: written while training waits (on a cpu" in read_log(tmp_path / "run")


def test_a_run_that_saves_only_at_its_end_makes_no_copy(train_here, flags, monkeypatch):
    monkeypatch.setattr(
        saver_module.CheckpointSaver, "choose_thread_and_log", lambda _: pytest.fail("a copy")
    )
    train_here(flags(**WITHOUT_SAMPLE, **{"checkpoint.interval": 8}))


def test_pinned_memory_without_a_gpu_is_refused_by_name(train_here, flags):
    with pytest.raises(UsageError, match="async_with_pinned_mem"):
        train_here(flags(**{"checkpoint.async_mode": "async_with_pinned_mem"}))
    assert check_async_mode.__doc__


@pytest.mark.distributed
@pytest.mark.parametrize("config", ["fsdp2", "ddp"])
def test_two_ranks_write_the_same_bytes_in_the_background(flags, tmp_path, config):
    modes = ("async", "disabled")
    for mode in modes:
        options = {**OFTEN, "training.batch_size": 2, "checkpoint.async_mode": mode}
        folder = {"job.dump_folder": tmp_path / mode}
        launch(flags(**options, **folder), config=config, processes=2)
    for name in ("step-2", "step-4", "step-6", "step-8"):
        some, others = (
            digests_of_all_files(tmp_path / mode / "checkpoint" / name) for mode in modes
        )
        assert some == others
        assert {"rank-0.json", "rank-1.json"} <= some.keys()
        assert sum(file.startswith("optimizer/") for file in some) == 2
