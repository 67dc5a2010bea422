"""The process of a run: what it does before the run begins."""

import gc
import sys

import pytest

from flame_accel import standard_streams, stop_signals, train
from flame_accel.train_process import run_training


@pytest.fixture
def process_left_alone(monkeypatch: pytest.MonkeyPatch):
    """This process keeps its signal handlers, its streams and its command line."""
    monkeypatch.setattr(stop_signals.StopSignals, "install_handlers", lambda self: None)
    monkeypatch.setattr(standard_streams, "protect_standard_streams", lambda: None)
    monkeypatch.setattr(sys, "argv", [*sys.argv])


@pytest.mark.usefixtures("process_left_alone")
def test_the_collector_is_on_when_the_run_begins_and_skips_what_the_imports_made(
    flags, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    monkeypatch.setattr(
        train, "main", lambda *_: seen.append((gc.isenabled(), gc.get_freeze_count() > 100_000))
    )
    gc.unfreeze()
    try:
        run_training(flags())
    finally:
        gc.unfreeze()
    assert seen == [(True, True)]
