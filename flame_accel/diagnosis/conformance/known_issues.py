"""Models of fla that are known to break a law of `laws`, each with the cause.

Places are in fla 0.6.0. The tests hold that exactly these laws are broken, except where rounding
decides: a model that starts to work has to leave this list.
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
    by_rounding: bool = False
    """Whether it is broken with some weights only, since rounding to bf16 decides."""


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
    *(
        KnownIssue(
            "mom",
            law,
            "cuda",
            "its router chooses memories by logits in bf16: a token that rounding sends to another "
            "one differs by some 20%",
            by_rounding=True,
        )
        for law in ("generates", "leaves padding out", "searches with beams", "caches")
    ),
    KnownIssue(
        "parallax",
        "leaves padding out",
        "cuda",
        "for a prompt of one token its kernel is 2.6e-2 from the result in fp32, which it does not "
        "take: a padded one is rounded otherwise, and differs by 3.2e-2",
        by_rounding=True,
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


def laws_decided_by_rounding(model_type: str, device: str) -> set[str]:
    """Those of `known_issue_reasons_by_law` that hold with some weights."""
    return {
        issue.law
        for issue in KNOWN_ISSUES
        if issue.by_rounding
        and model_type in issue.models.split()
        and device in issue.devices.split()
    }
