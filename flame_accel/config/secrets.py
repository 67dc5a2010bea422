"""Secrets in options: access tokens and passwords, which no record of a run may hold.

Options become text in `run_file.to_toml`, `values.format_short_masked_value`, `errors.UserError`,
and in the log, the trackers and the lists of starts of `observe`; each passes its text through
`mask_secrets`.
What a run computes with is never masked.
"""

import os
import re

MASK = "[secret]"
_TOKEN_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
_MIN_TOKEN_LENGTH = 8
"""Shorter values of these variables are no tokens, and may be words of other texts."""
_PATTERNS = (
    # a token of the Hub
    (re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}"), MASK),
    # scheme://user:password@host
    (re.compile(r"""(\b[A-Za-z][\w+.-]*://)[^\s/@?#"']+@"""), rf"\1{MASK}@"),
    # the whole query of a signed URL: its other parts go with the signature
    (
        re.compile(
            r"""(://[^\s?"']*\?)(?=[^\s"']*?(?:sig|token|key|secret|passw|credential|auth|policy))"""
            r"""[^\s"',]+""",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
)


def mask_secrets(text: str) -> str:
    """The text with `[secret]` in place of access tokens, passwords and signatures of URLs."""
    for variable in _TOKEN_VARIABLES:
        token = os.environ.get(variable, "")
        if len(token) >= _MIN_TOKEN_LENGTH:
            text = text.replace(token, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
