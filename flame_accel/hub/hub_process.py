"""Runs a request to the Hub in a process of its own, whose end never matters to the run.

The process may hang, be killed or print what it wants: no progress bar reaches the console, no
thread of an HTTP library outlives the run, and no lock is held when a data worker is forked. The
requests themselves are in `hub_client` and `hub_upload`, the process is `hub_request`.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flame_accel.hub.hub_client import BranchQuery, BranchState, CheckedRepository
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_upload import CommitByBranch, Upload
from flame_accel.json_text import parse_json_text

PACKAGE_PARENT = Path(__file__).parents[2]
RUN_REQUEST = """\
import sys
# not the working folder, whose modules would hide others
sys.path[0:1] = []
sys.path.append(sys.argv[1])
from flame_accel.hub.hub_request import main
main()
"""
CHECK_SECONDS = 90.0
"""Longest time for the checks before a run; the Hub takes a second or two."""


class HubProcess:
    """Makes one request at a time; another thread may end it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._killed = False

    def check_write_access_and_create_if_missing(
        self, repo_id: str, *, must_be_private: bool, query: BranchQuery
    ) -> CheckedRepository:
        """As `hub_client.check_write_access_and_create_if_missing`, within `CHECK_SECONDS`."""
        arguments = {"repo_id": repo_id, "must_be_private": must_be_private, "query": asdict(query)}
        found = self._request_in_subprocess(
            "check_write_access_and_create_if_missing", arguments, CHECK_SECONDS
        )
        return CheckedRepository(**{**found, "branches": _parse_branches(found["branches"])})

    def describe_branches(self, repo_id: str, query: BranchQuery) -> dict[str, BranchState]:
        """As `hub_client.describe_branches`, within `CHECK_SECONDS`."""
        arguments = {"repo_id": repo_id, "query": asdict(query)}
        return _parse_branches(
            self._request_in_subprocess("describe_branches", arguments, CHECK_SECONDS)
        )

    def scan_for_token_then_upload_and_tag(self, request: Upload) -> CommitByBranch:
        """As `hub_upload.scan_for_token_then_upload_and_tag`."""
        return self._request_in_subprocess(
            "scan_for_token_then_upload_and_tag", asdict(request), None
        )

    def kill_and_refuse_requests(self) -> None:
        """Ends the request that is being made, and refuses all others."""
        self._killed = True
        process = self._process
        if process is not None:
            process.kill()

    def _request_in_subprocess(
        self, operation: str, arguments: dict[str, Any], limit_seconds: float | None
    ) -> Any:
        """The result of an operation.

        Raises:
            HubProblem: It failed, or took longer than `limit_seconds` seconds.
        """
        request = {"operation": operation, "arguments": arguments, "parent": os.getpid()}
        with subprocess.Popen(
            [sys.executable, "-c", RUN_REQUEST, str(PACKAGE_PARENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the run, which then ends this process
            start_new_session=True,
            text=True,
            env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        ) as process:
            self._process = process
            if self._killed:
                process.kill()
            try:
                printed, _ = process.communicate(json.dumps(request) + "\n", timeout=limit_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                message = f"the Hub did not answer within {limit_seconds:.0f} s"
                raise HubProblem("unreachable", message) from None
            finally:
                self._process = None
        lines = printed.splitlines()
        try:
            answer = parse_json_text(lines[-1] if lines else "")
        except ValueError:
            message = f"the upload process ended with code {process.returncode}"
            raise HubProblem("unexpected", message) from None
        if "result" not in answer:
            raise HubProblem(answer["reason"], answer["message"], answer["retry_after_seconds"])
        return answer["result"]


def _parse_branches(answer: dict[str, Any]) -> dict[str, BranchState]:
    return {name: BranchState(**state) for name, state in answer.items()}
