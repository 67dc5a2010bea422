"""Models of fla that are known to break a law of `laws`, each with the cause.

Places are in fla 0.6.0. The tests hold that exactly these laws are broken: a model that starts to
work has to leave this list.
"""

from typing import NamedTuple


class KnownIssue(NamedTuple):
    """A law that some models break."""

    models: str
    """Model types, separated by spaces."""
    law: str
    """A key of `laws.LAWS`."""
    devices: str
    """Where: `cpu` with our kernels, `cuda` with fla's, or both."""
    reason: str


KNOWN_ISSUES: tuple[KnownIssue, ...] = (
    KnownIssue(
        "cat",
        "keeps documents apart",
        "cpu cuda",
        "fla refuses cu_seqlens: its chunks are cut across the whole row "
        "(fla/models/cat/modeling_cat.py:547)",
    ),
    KnownIssue(
        "forgetting_transformer log_linear_mamba2 path_attn yoco",
        "reads in pieces",
        "cpu cuda",
        "its layers continue a cache with one token at a time, and raise an error for several",
    ),
    KnownIssue(
        "mom",
        "searches with beams",
        "cuda",
        "on an H200 the score of the best of 3 beams differs by 0.2; the cause is not known",
    ),
    KnownIssue(
        "mom",
        "reads in pieces",
        "cuda",
        "its layer refused several tokens at once when this was run; it takes them now",
    ),
)


def known_issue_reasons_by_law(model_type: str, device: str) -> dict[str, str]:
    """The laws that a model is known to break on a device, each with its reason.

    Args:
        model_type: as fla registers it.
        device: "cpu", which stands for our kernels wherever they run, or "cuda" for fla's.
    """
    return {
        issue.law: issue.reason
        for issue in KNOWN_ISSUES
        if model_type in issue.models.split() and device in issue.devices.split()
    }
