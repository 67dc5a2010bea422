"""Answers of the Hub become problems with a reason, in one line without the access token."""

import re
from dataclasses import asdict, replace

import pytest
from huggingface_hub import HfApi

from flame_accel.hub.hub_client import (
    BranchQuery,
    BranchState,
    check_write_access_and_create_if_missing,
    describe_branches,
)
from flame_accel.hub.hub_problem import HubProblem, classify_error
from flame_accel.hub.hub_request import answer_request
from flame_accel.hub.hub_upload import Upload, scan_for_token_then_upload_and_tag
from tests.helpers.hub_server import WRITE_TOKEN

REPO = "tester/model"
QUERY = BranchQuery(pattern=".*", run_id="mine", known={})


def problem_of(status: int, local_hub, retry_after: int | None = None) -> HubProblem:
    local_hub.fail_next(with_status=status, path_contains="whoami", retry_after=retry_after)
    with pytest.raises(HubProblem) as raised:
        check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    return raised.value


@pytest.mark.parametrize(
    ("status", "reason", "retried"),
    [
        (401, "bad_token", False),
        (403, "no_permission", False),
        (409, "busy", True),
        (429, "busy", True),
        (500, "busy", True),
        (503, "busy", True),
    ],
)
def test_statuses_have_reasons(local_hub, retry_waits, status, reason, retried):
    problem = problem_of(status, local_hub)
    assert (problem.reason, problem.is_worth_retrying) == (reason, retried)
    assert WRITE_TOKEN not in problem.message
    # one short sentence: neither addresses nor the client's advice
    assert re.fullmatch(rf"{status} [\w -]+(: [\w -]+)?", problem.message)


def test_a_hub_that_asks_for_patience_says_how_much(local_hub, retry_waits):
    assert problem_of(429, local_hub, retry_after=17).retry_after_seconds == 17.0


def test_a_hub_that_is_down_is_unreachable(local_hub, retry_waits):
    with local_hub.down(), pytest.raises(HubProblem) as raised:
        check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    assert raised.value.reason == "unreachable"


def test_the_repository_is_created_once_and_as_asked(local_hub):
    first = check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    assert first.created and first.private and local_hub.repository(REPO).private
    again = check_write_access_and_create_if_missing("model", must_be_private=True, query=QUERY)
    assert again.repo_id == REPO and not again.created


def test_a_public_repository_is_not_used_for_a_private_model(local_hub):
    HfApi().create_repo(REPO, private=False)
    with pytest.raises(HubProblem, match="is public"):
        check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    assert not check_write_access_and_create_if_missing(
        REPO, must_be_private=False, query=QUERY
    ).private


def test_an_error_that_quotes_the_token_does_not_show_it(local_hub):
    problem = classify_error(ValueError(f"illegal header: {WRITE_TOKEN}\nand more"))
    assert problem.message == "illegal header: <token> and more"


def test_an_error_without_an_answer_is_told_without_addresses():
    error = ValueError(
        "Server error '500 X' for url 'https://hub/a?b'\nFor more information check: https://x/y"
    )
    assert classify_error(error).message == "Server error '500 X'"


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


def test_a_branch_is_taken_if_other_weights_than_those_of_the_run_are_there(local_hub, tmp_path):
    api = HfApi()
    check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)

    def main(run_id: str = "mine") -> BranchState:
        return describe_branches(REPO, replace(QUERY, run_id=run_id))["main"]

    assert not main().is_taken
    api.upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=b"Plans")
    assert not main().is_taken and main().card == "Plans" and main().uploaded_card is None
    (tmp_path / "model.safetensors").write_bytes(b"first")
    (tmp_path / "README.md").write_text("Model")
    upload = Upload(
        folder=str(tmp_path),
        repo_id=REPO,
        revisions=("main",),
        tag=None,
        message="Model",
        run_id="mine",
    )
    commit = scan_for_token_then_upload_and_tag(upload)["main"]
    assert not main().is_taken and main("other").is_taken
    # edits of the card, and files of another kind, do not make it another model
    api.upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=b"Edited")
    api.upload_file(repo_id=REPO, path_in_repo="model.gguf", path_or_fileobj=b"converted")
    assert not main().is_taken
    assert (main().card, main().uploaded_card) == ("Edited", "Model")
    api.upload_file(repo_id=REPO, path_in_repo="model.safetensors", path_or_fileobj=b"second")
    assert main().is_taken
    api.delete_file("model.safetensors", REPO)
    assert not main("other").is_taken
    assert commit != main().commit == local_hub.repository(REPO).branches["main"]
