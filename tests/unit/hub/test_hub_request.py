"""The process of a request takes and gives JSON."""

from dataclasses import asdict

from flame_accel.hub.hub_client import BranchQuery
from flame_accel.hub.hub_request import answer_request
from tests.helpers.hub_client import REPO

QUERY = BranchQuery(pattern=".*", run_id="mine", known={})


def test_requests_and_answers_are_json(local_hub):
    arguments = {"repo_id": REPO, "must_be_private": True, "query": asdict(QUERY)}
    answer = answer_request(
        {"operation": "check_write_access_and_create_if_missing", "arguments": arguments}
    )
    assert answer["result"]["repo_id"] == REPO
    local_hub.fail_next(with_status=403, path_contains="whoami")
    answer = answer_request(
        {"operation": "check_write_access_and_create_if_missing", "arguments": arguments}
    )
    assert answer["reason"] == "no_permission"
