"""Answers of the Hub become problems with a reason, in one line without the access token."""

import re

import pytest
from huggingface_hub import HfApi

from flame_accel.hub.hub_client import (
    SEARCHED_BLOCK_BYTES,
    HubProblem,
    Upload,
    answer_request,
    check_repository,
    describe_error,
    upload,
)
from tests.helpers.hub_server import WRITE_TOKEN

REPO = "tester/model"


def problem_of(status: int, local_hub, retry_after: int | None = None) -> HubProblem:
    local_hub.fail_next(with_status=status, path_contains="whoami", retry_after=retry_after)
    with pytest.raises(HubProblem) as raised:
        check_repository(REPO, private=True)
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
        check_repository(REPO, private=True)
    assert raised.value.reason == "unreachable"


def test_the_repository_is_created_once_and_as_asked(local_hub):
    first = check_repository(REPO, private=True)
    assert first.created and first.private and local_hub.repository(REPO).private
    again = check_repository("model", private=True)
    assert again.repo_id == REPO and not again.created


def test_a_public_repository_is_not_used_for_a_private_model(local_hub):
    HfApi().create_repo(REPO, private=False)
    with pytest.raises(HubProblem, match="is public"):
        check_repository(REPO, private=True)
    assert not check_repository(REPO, private=False).private


def test_a_file_with_the_access_token_is_not_uploaded(local_hub, tmp_path):
    check_repository(REPO, private=True)
    # also where two blocks of a large file meet
    (tmp_path / "notes.txt").write_text("x" * (SEARCHED_BLOCK_BYTES - 5) + WRITE_TOKEN)
    request = Upload(
        folder=str(tmp_path), repo_id=REPO, revisions=("main",), tag=None, message="Model"
    )
    with pytest.raises(HubProblem, match=r"notes\.txt contains your access token"):
        upload(request)
    assert "notes.txt" not in local_hub.file_names(REPO, "main")


def test_an_upload_replaces_the_weights_of_an_earlier_one(local_hub, tmp_path):
    check_repository(REPO, private=True)
    request = Upload(
        folder=str(tmp_path), repo_id=REPO, revisions=("main", "step-3"), tag="v1", message="Model"
    )
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"first")
    upload(request)
    (tmp_path / "model-00001-of-00001.safetensors").rename(tmp_path / "model.safetensors")
    upload(request)
    for revision in request.revisions:
        names = local_hub.file_names(REPO, revision)
        assert "model.safetensors" in names
        assert "model-00001-of-00001.safetensors" not in names
    assert local_hub.read_file(REPO, "model.safetensors", "v1") == b"first"


def test_an_error_that_quotes_the_token_does_not_show_it(local_hub):
    problem = describe_error(ValueError(f"illegal header: {WRITE_TOKEN}\nand more"))
    assert problem.message == "illegal header: <token> and more"


def test_an_error_without_an_answer_is_told_without_addresses():
    error = ValueError(
        "Server error '500 X' for url 'https://hub/a?b'\nFor more information check: https://x/y"
    )
    assert describe_error(error).message == "Server error '500 X'"


def test_requests_and_answers_are_json(local_hub):
    arguments = {"repo_id": REPO, "private": True}
    answer = answer_request({"operation": "check_repository", "arguments": arguments})
    assert answer["result"]["repo_id"] == REPO
    local_hub.fail_next(with_status=403, path_contains="whoami")
    answer = answer_request({"operation": "check_repository", "arguments": arguments})
    assert answer["reason"] == "no_permission"
