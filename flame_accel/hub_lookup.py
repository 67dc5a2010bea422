"""Names of models on the Hub; asks it once, for a few seconds, whether one exists or it answers.

The libraries that load from the Hub retry a failed connection for about half a minute; a name that
does not exist, or a machine without a network, is answered here instead. Loading is up to callers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from flame_accel.config.errors import UsageError

TIMEOUT_SECONDS = 5.0


class HubName(NamedTuple):
    """A model on the Hub, at one of its revisions; or a local path."""

    repo_id: str
    """`owner/name`, `name`, or the path."""
    revision: str | None
    """Branch, tag or commit; None is the main branch."""


def split_hub_name_unless_path(name_or_path: str) -> HubName:
    """Splits `owner/name@revision`; what exists as a path is left whole."""
    if Path(name_or_path).exists():
        return HubName(name_or_path, None)
    repo_id, _, revision = name_or_path.partition("@")
    return HubName(repo_id, revision or None)


def check_model_exists_if_hub_reachable(name: str, *, where: str, remedy: str) -> bool:
    """Whether a model repository can be loaded from the Hub; if not, only the local cache can help.

    Args:
        name: Name on the Hub, with `@revision` or without.
        where: The option that names it.
        remedy: What to do if it does not exist, besides checking the name.

    Raises:
        UserError: The Hub answers that there is no such repository or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo_id, revision = split_hub_name_unless_path(name)
    try:
        HfApi().model_info(repo_id, revision=revision, timeout=TIMEOUT_SECONDS)
    except (GatedRepoError, HFValidationError):
        # loading it reports what access it takes, or why this cannot be a name
        return True
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"{repo_id!r} does not exist here, nor on the Hub (or is private there)",
            where=where,
            remedy=f"check the name and your access (HF_TOKEN); {remedy}",
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(
            f"{repo_id!r} on the Hub has no revision {revision!r}",
            where=where,
            remedy=f"name a branch, a tag or a commit of it; {remedy}",
        ) from error
    except HfHubHTTPError:
        # an answer of another kind: loading it reports what is wrong
        return True
    # without a connection, what is raised depends on the HTTP library of huggingface_hub
    except Exception:
        return False
    return True


def is_hub_reachable() -> bool:
    """Whether the Hub answers at all; not if connections are forbidden (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    # without a connection, what is raised depends on the HTTP library of huggingface_hub
    except Exception:
        return False
    return True


@contextmanager
def offline_unless_hub_reachable() -> Iterator[None]:
    """Has datasets be loaded from the local cache alone if the Hub does not answer.

    Each of them is otherwise asked for again and again, for half a minute.
    """
    import datasets.config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not is_hub_reachable():
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
