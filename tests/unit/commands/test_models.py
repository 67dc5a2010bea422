"""The models command keeps what a process found before it ended."""

import json

import pytest

from flame_accel.commands import models
from flame_accel.diagnosis.conformance.laws import LAWS


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("echo Killed >&2; exit 137", "the process died with exit code 137: Killed"),
        ("exec sleep 60", "no answer within 1 s"),
    ],
    ids=["dies", "hangs"],
)
def test_a_process_that_ends_early_keeps_what_it_found(then, reason, tmp_path, monkeypatch):
    found = {"law": "trains", "holds": True, "reason": "", "seconds": 2.0}
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{json.dumps({'finding': found})}'\n{then}\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    findings = models.check_laws_of_model_in_subprocess("gla", "cpu", 1)["findings"]
    assert findings[0] == found
    assert [finding["law"] for finding in findings] == list(LAWS)
    assert {finding["reason"] for finding in findings[1:]} == {reason}
