"""Messages of other packages that every start would print and that concern no user.

Each entry names one message and why it does not matter. Whatever else a package logs or warns about
is shown, and so is every message of flame_accel.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

FASTER_PACKAGE_MISSING = r".*( is not available because |Triton's conv1d backend)"
LOG_MESSAGES = {
    # libraries for other Pythons and for other GPUs: a wheel of torchao holds them for all, and
    # training in 8-bit floats uses none of them
    "torchao": r"Failed to load .*torchao/_C\w*\.(cpython-[\w-]+|abi3)\.so: ",
    # it is imported wherever it is installed, used or not
    "DeepSpeed": r"Setting accelerator to CPU\. If you have GPU or other accelerator",
    # a convolution over four tokens; packed rows run on fla's
    "transformers.integrations.hub_kernels": r"`causal_conv1d_(fn|update)` is falling back",
    # torchao 0.18 registers two enums in a way that torch 2.13 has no need of any more
    "torch.utils._pytree": r"<enum '(KernelPreference|ScaleCalculationMode)'> is an Enum subclass",
    # of packages that fla's layers of Mamba would call: other kernels serve
    "fla.layers.mamba": FASTER_PACKAGE_MISSING,
    "fla.layers.mamba2": FASTER_PACKAGE_MISSING,
    "fla.layers.mamba3": FASTER_PACKAGE_MISSING,
    "fla.layers.log_linear_mamba2": FASTER_PACKAGE_MISSING,
}
"""Name of a logger, and a pattern that the suppressed messages begin with."""
IMPORT_WARNINGS = (
    # PyTorch implementations replace fla's kernels where Triton has no device
    "Triton is not supported",
    # PyTorch's attention replaces the package
    "Flash Attention is not installed",
)
"""Beginnings of the warnings that are suppressed while fla is imported."""


class _MessageDroppingFilter(logging.Filter):
    """Drops log records whose message begins with a pattern."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return self.pattern.match(record.getMessage()) is None


def suppress_known_log_messages() -> None:
    """Suppresses `LOG_MESSAGES` in this process; calling it again changes nothing."""
    for name, pattern in LOG_MESSAGES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _MessageDroppingFilter) for known in logger.filters):
            logger.addFilter(_MessageDroppingFilter(pattern))


@contextmanager
def suppress_known_import_warnings() -> Iterator[None]:
    """Suppresses `IMPORT_WARNINGS` within the block."""
    with warnings.catch_warnings():
        for beginning in IMPORT_WARNINGS:
            warnings.filterwarnings("ignore", message=beginning)
        yield
