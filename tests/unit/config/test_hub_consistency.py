"""Options of the Hub that contradict each other are refused."""

import pytest

from tests.helpers.options import only_problem, parse_flags

REPO = "--hub.repo_id org/model"


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--hub.repo_id ", "is empty"),
        ("--hub.repo_id=", "is empty"),
        ("--hub.when checkpoint", "has no effect: hub.repo_id is none"),
        ("--hub.no_private", "has no effect: hub.repo_id is none"),
        ("--hub.include_logs", "has no effect: hub.repo_id is none"),
        (f"{REPO} --hub.when 2 --checkpoint.no_enable_checkpoint", "checkpoints are off"),
        (f"{REPO} --hub.revision step-{{step}}", "only the exported model is uploaded"),
        (f"{REPO} --hub.when checkpoint --hub.tag v1", "names one commit"),
    ],
)
def test_options_of_the_hub_that_contradict_each_other_are_refused(flags: str, rule: str) -> None:
    message = only_problem(*flags.split(" "))
    assert message.startswith("--hub.")
    assert rule in message
    assert "\n    " in message


def test_an_explicit_none_turns_uploads_off_whatever_a_run_file_sets() -> None:
    config = parse_flags("--hub.repo_id", "none", "--hub.when", "checkpoint")
    assert config.hub.repo_id is None


@pytest.mark.parametrize("name", ["model", "org/model-1.3B_v2", "a/b"])
def test_names_of_the_hub_are_accepted(name: str) -> None:
    assert parse_flags("--hub.repo_id", name).hub.repo_id == name
