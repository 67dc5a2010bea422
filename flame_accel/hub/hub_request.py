"""The process that `hub_process` starts: it makes one request of `hub_client` or `hub_upload`."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from flame_accel.hub.hub_client import (
    BranchQuery,
    check_write_access_and_create_if_missing,
    describe_branches,
)
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_upload import Upload, scan_for_token_then_upload_and_tag
from flame_accel.stop_signals import call_when_parent_is_gone

SILENCE_SECONDS = 60.0
"""Longest silence of the Hub in the middle of a request."""

OPERATIONS: dict[str, Callable[..., Any]] = {
    "check_write_access_and_create_if_missing": lambda query, **arguments: asdict(
        check_write_access_and_create_if_missing(**arguments, query=BranchQuery(**query))
    ),
    "describe_branches": lambda repo_id, query: {
        name: asdict(state)
        for name, state in describe_branches(repo_id, BranchQuery(**query)).items()
    },
    "scan_for_token_then_upload_and_tag": lambda **arguments: scan_for_token_then_upload_and_tag(
        Upload(**{**arguments, "revisions": tuple(arguments["revisions"])})
    ),
}


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Carries out a request: `result`, or `reason`, `message` and `retry_after_seconds`."""
    try:
        return {"result": OPERATIONS[request["operation"]](**request["arguments"])}
    except HubProblem as problem:
        return {
            "reason": problem.reason,
            "message": problem.message,
            "retry_after_seconds": problem.retry_after_seconds,
        }


def _set_read_timeout() -> None:
    """Lets a connection on which nothing arrives fail; huggingface_hub would wait forever."""
    from huggingface_hub import get_session, set_client_factory

    session = get_session()
    kind, hooks = type(session), session.event_hooks
    set_client_factory(
        lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=SILENCE_SECONDS)
    )


def main() -> None:
    """Answers one request: a line of JSON on standard input, one on standard output."""
    request = json.loads(sys.stdin.readline())
    # the run may be killed
    call_when_parent_is_gone(lambda: os._exit(1), parent=request["parent"])
    # the run has priority over its uploads
    os.nice(10)
    _set_read_timeout()
    print(json.dumps(answer_request(request)), flush=True)


if __name__ == "__main__":
    main()
