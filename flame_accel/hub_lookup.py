"""Asks the Hub once, for a few seconds, whether a repository exists, before anything is loaded.

The libraries that load from the Hub retry a failed connection for about half a minute; a name that
does not exist, or a machine without a network, is answered here instead. Loading is up to callers.
"""

from flame_accel.config.errors import UsageError

TIMEOUT_SECONDS = 5.0


def check_model_exists_if_hub_reachable(name: str, *, where: str, remedy: str) -> bool:
    """Whether a model repository can be loaded from the Hub; if not, only the local cache can help.

    Args:
        name: Name on the Hub.
        where: The option that names it.
        remedy: What to do if it does not exist, besides checking the name.

    Raises:
        UserError: The Hub answers that there is no such repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        HfApi().model_info(name, timeout=TIMEOUT_SECONDS)
    except (GatedRepoError, HFValidationError):
        # loading it reports what access it takes, or why this cannot be a name
        return True
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"{name!r} does not exist here, nor on the Hub (or is private there)",
            where=where,
            remedy=f"check the name and your access (HF_TOKEN); {remedy}",
        ) from error
    except HfHubHTTPError:
        # an answer of another kind: loading it reports what is wrong
        return True
    # without a connection, what is raised depends on the HTTP library of huggingface_hub
    except Exception:
        return False
    return True
