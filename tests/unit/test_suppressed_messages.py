"""Named messages of other packages are suppressed, and nothing else is."""

import logging
import warnings

import pytest

from flame_accel.suppressed_messages import (
    IMPORT_WARNINGS,
    LOG_MESSAGES,
    suppress_known_import_warnings,
    suppress_known_log_messages,
)

FOREIGN = [
    (
        "torchao",
        "Failed to load /site/torchao/_C_mxfp8.cpython-310-x86_64-linux-gnu.so: Could not load it",
    ),
    ("torchao", "Failed to load /site/torchao/_C_cutlass_90a.abi3.so: Could not load it"),
    (
        "torch.utils._pytree",
        "<enum 'KernelPreference'> is an Enum subclass and is now natively supported by ...",
    ),
    (
        "transformers.integrations.hub_kernels",
        "`causal_conv1d_fn` is falling back to its reference PyTorch implementation because ...",
    ),
    ("fla.layers.mamba3", "Mamba-3 fast path is not available because `x` is None. "),
    ("fla.layers.mamba2", "Mamba2 does not recommend using Triton's conv1d backend, as it ..."),
]
SHOWN = [
    ("fla.layers.mamba2", "the state is not kept"),
    (
        "transformers.integrations.hub_kernels",
        "`mamba_chunk_scan_combined` is falling back to its reference PyTorch implementation",
    ),
    ("torchao", "Failed to load the checkpoint"),
    ("torchao", "this version of torchao is too old"),
    ("torch.utils._pytree", "<enum 'Colour'> is an Enum subclass and is now ..."),
    ("flame_accel", FOREIGN[0][1]),
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    suppress_known_log_messages()
    suppress_known_log_messages()


@pytest.mark.parametrize(("logger", "message"), FOREIGN)
def test_a_message_that_concerns_no_user_is_suppressed(logger, message, caplog):
    logging.getLogger(logger).warning(message)
    assert caplog.records == []


@pytest.mark.parametrize(("logger", "message"), SHOWN)
def test_every_other_message_is_shown(logger, message, caplog):
    logging.getLogger(logger).warning("%s", message)
    assert [record.getMessage() for record in caplog.records] == [message]


def test_the_filters_are_installed_once():
    for name in LOG_MESSAGES:
        kinds = [type(known).__name__ for known in logging.getLogger(name).filters]
        assert kinds.count("_MessageDroppingFilter") == 1


def test_only_the_warnings_of_the_import_are_suppressed():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with suppress_known_import_warnings():
            for beginning in IMPORT_WARNINGS:
                warnings.warn(f"{beginning}, and more", stacklevel=1)
            warnings.warn("this is new", stacklevel=1)
        warnings.warn(f"{IMPORT_WARNINGS[0]}, said later", stacklevel=1)
    said = [str(warning.message) for warning in caught]
    assert said == ["this is new", f"{IMPORT_WARNINGS[0]}, said later"]
