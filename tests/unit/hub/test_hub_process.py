"""A request in a process of its own: the same answers and problems, a limited time, and an end."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from flame_accel.hub import hub_process
from flame_accel.hub.hub_client import BranchQuery
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_process import HubProcess
from flame_accel.hub.hub_upload import Upload
from tests.helpers.hub_client import REPO

QUERY = BranchQuery(pattern=".*", run_id="mine", known={})


def test_requests_answer_as_they_do_in_this_process(local_hub, tmp_path):
    process = HubProcess()
    checked = process.check_write_access_and_create_if_missing(
        REPO, must_be_private=True, query=QUERY
    )
    assert checked.created and checked.private and local_hub.repository(REPO).private
    (tmp_path / "config.json").write_text("{}")
    upload = Upload(
        folder=str(tmp_path), repo_id=REPO, revisions=("main",), tag=None, message="Model",
        run_id="mine",
    )  # fmt: skip
    commits = process.scan_for_token_then_upload_and_tag(upload)
    assert process.describe_branches(REPO, QUERY)["main"].commit == commits["main"]


def test_a_problem_arrives_with_its_reason(local_hub):
    local_hub.fail_next(with_status=403, path_contains="whoami")
    with pytest.raises(HubProblem) as raised:
        HubProcess().check_write_access_and_create_if_missing(
            REPO, must_be_private=True, query=QUERY
        )
    assert raised.value.reason == "no_permission"


def test_a_hub_that_does_not_answer_in_time_is_unreachable(local_hub, monkeypatch):
    monkeypatch.setattr(hub_process, "CHECK_SECONDS", 1.0)
    local_hub.delay_next(60.0, path_contains="", times=float("inf"))
    with pytest.raises(HubProblem, match="did not answer within 1 s") as raised:
        HubProcess().describe_branches(REPO, QUERY)
    assert raised.value.reason == "unreachable"


def test_a_process_that_the_system_kills_is_a_problem_and_no_error(monkeypatch):
    code = f"import os; os.kill(os.getpid(), {signal.SIGKILL})"
    monkeypatch.setattr(hub_process, "RUN_REQUEST", code)
    with pytest.raises(HubProblem, match="ended with code -9") as raised:
        HubProcess().describe_branches(REPO, QUERY)
    assert raised.value.reason == "unexpected"


def test_what_is_printed_before_the_answer_is_passed_over(monkeypatch):
    code = 'print("a banner of some package"); print(\'{"result": {}}\')'
    monkeypatch.setattr(hub_process, "RUN_REQUEST", code)
    assert HubProcess().describe_branches(REPO, QUERY) == {}


def test_another_thread_ends_a_request_and_all_later_ones(monkeypatch):
    monkeypatch.setattr(hub_process, "RUN_REQUEST", "import time; time.sleep(60)")
    process = HubProcess()
    timer = threading.Timer(0.5, process.kill_and_refuse_requests)
    timer.start()
    begun = time.monotonic()
    for _ in range(2):
        with pytest.raises(HubProblem, match="ended with code -9"):
            process.describe_branches(REPO, QUERY)
    timer.join()
    assert time.monotonic() - begun < 30


def test_modules_in_the_working_folder_hide_no_others(local_hub, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('hidden')")
    monkeypatch.chdir(tmp_path)
    shows = subprocess.run([sys.executable, "-c", "import json"], capture_output=True, text=True)
    assert "hidden" in shows.stderr
    assert (
        HubProcess()
        .check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
        .created
    )
