"""Shared by the tests of records and logs."""

import logging

import pytest


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """What the run logs, as `log.text`; its logger hands nothing on by itself."""
    monkeypatch.setattr(logging.getLogger("flame_accel"), "propagate", True)
    caplog.set_level(logging.INFO, "flame_accel")
    return caplog
