"""Answers of the Hub become problems with a reason, in one line without the access token."""

import re

import pytest

from flame_accel.hub.hub_client import BranchQuery, check_write_access_and_create_if_missing
from flame_accel.hub.hub_problem import HubProblem, classify_error
from tests.helpers.hub_client import REPO
from tests.helpers.hub_server import WRITE_TOKEN

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


def test_an_error_that_quotes_the_token_does_not_show_it(local_hub):
    problem = classify_error(ValueError(f"illegal header: {WRITE_TOKEN}\nand more"))
    assert problem.message == "illegal header: <token> and more"


def test_an_error_without_an_answer_is_told_without_addresses():
    error = ValueError(
        "Server error '500 X' for url 'https://hub/a?b'\nFor more information check: https://x/y"
    )
    assert classify_error(error).message == "Server error '500 X'"
