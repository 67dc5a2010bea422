"""One question to the Hub: a missing repository is an error, a missing network is not."""

import inspect
from pathlib import Path
from typing import Any

import datasets.config
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoTokenizer

from flame_accel.config import UserError
from flame_accel.data.tokens.tokenizer import load_tokenizer
from flame_accel.hub_lookup import (
    TIMEOUT_SECONDS,
    check_model_exists_if_hub_reachable,
    is_hub_reachable,
    offline_unless_hub_reachable,
    split_hub_name_unless_path,
)
from flame_accel.models import load_model_config


def make_error(kind: type[Exception]) -> Exception:
    """An error of the Hub library without the HTTP response that it wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, "from the Hub")
    return error


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    """Has the Hub answer with an error, or with a repository, and asks for one."""

    def answer(error: Exception | None, name: str = "org/model") -> bool:
        def model_info(api: HfApi, repo_id: str, *, revision: str | None, timeout: float) -> None:
            assert (repo_id, revision) == split_hub_name_unless_path(
                name
            ) and timeout == TIMEOUT_SECONDS
            if error is not None:
                raise error

        monkeypatch.setattr(HfApi, "model_info", model_info)
        return check_model_exists_if_hub_reachable(name, where="model.config", remedy="name a file")

    return answer


def test_a_repository_that_exists_can_be_loaded(ask) -> None:
    assert ask(None)
    assert ask(make_error(GatedRepoError))
    assert ask(make_error(HfHubHTTPError))
    assert ask(make_error(HFValidationError))


def test_a_revision_is_told_from_a_path(ask, tmp_path: Path, monkeypatch) -> None:
    assert split_hub_name_unless_path("org/model@v1/beta") == ("org/model", "v1/beta")
    assert split_hub_name_unless_path("org/model") == ("org/model", None)
    monkeypatch.chdir(tmp_path)
    Path("run@2").mkdir()
    assert split_hub_name_unless_path("run@2") == ("run@2", None)
    assert ask(None, "org/model@v1")


def test_a_revision_that_does_not_exist_is_an_error(ask) -> None:
    with pytest.raises(UserError, match="'org/model' on the Hub has no revision 'v2'"):
        ask(make_error(RevisionNotFoundError), "org/model@v2")


def test_a_repository_that_does_not_exist_is_an_error(ask) -> None:
    with pytest.raises(UserError, match=r"'org/model' does not exist.*\n.*name a file"):
        ask(make_error(RepositoryNotFoundError))


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError(), TimeoutError()])
def test_without_a_network_only_the_cache_can_help(ask, error: Exception) -> None:
    assert not ask(error)


def test_the_timeout_is_short_and_known_to_the_library() -> None:
    assert TIMEOUT_SECONDS <= 5
    assert "timeout" in inspect.signature(HfApi.model_info).parameters


@pytest.mark.parametrize("reachable", [True, False])
def test_loading_asks_the_hub_only_where_it_can_be_reached(
    monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    local_only: list[bool] = []

    def load(*arguments: Any, local_files_only: bool, **options: Any) -> None:
        local_only.append(local_files_only)
        raise OSError("not in the cache")

    def model_info(*arguments: Any, **options: Any) -> None:
        if not reachable:
            raise make_error(OfflineModeIsEnabled)

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(AutoConfig, "from_pretrained", load)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    with pytest.raises(UserError) as model_error:
        load_model_config("org/model")
    with pytest.raises(UserError) as tokenizer_error:
        load_tokenizer("org/model", False)
    assert local_only == [not reachable] * 2
    for error in (model_error, tokenizer_error):
        assert ("the Hub cannot be reached" in str(error.value)) == (not reachable)


@pytest.mark.parametrize("answers", [False, True])
def test_datasets_are_not_asked_for_of_a_hub_that_does_not_answer(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[float] = []

    class Session:
        def head(self, url: str, *, timeout: float) -> None:
            questions.append(timeout)
            if not answers:
                raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    for settings in (constants, datasets.config):
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    with offline_unless_hub_reachable():
        assert constants.HF_HUB_OFFLINE == datasets.config.HF_HUB_OFFLINE == (not answers)
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE
    assert questions == [TIMEOUT_SECONDS]


def test_a_hub_that_must_not_be_asked_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not is_hub_reachable()
