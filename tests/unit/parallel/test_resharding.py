"""When gathered weights are freed: options and YAMLs that agree, and what then happens."""

from types import SimpleNamespace
from typing import Any

import pytest

from flame_accel.config import UserError
from flame_accel.parallel.resharding import check_reshard_after_forward
from tests.helpers.runs import ROOT, launch

PROGRAMS = ROOT / "tests/helpers/fsdp2_programs.py"


@pytest.mark.covers_option("training.fsdp_reshard_after_forward")
@pytest.mark.distributed
def test_weights_are_freed_as_the_option_says():
    """The program sets training.fsdp_reshard_after_forward."""
    launch(["gathers_as_asked"], config="fsdp2", processes=2, script=PROGRAMS)


@pytest.mark.parametrize(
    ("asked", "launched", "message"),
    [
        ("always", False, "always contradicts fsdp_reshard_after_forward: false"),
        ("always", None, "no weights are gathered"),
        ("never", None, "no weights are gathered"),
    ],
)
def test_resharding_that_cannot_be_is_refused(asked, launched, message):
    with pytest.raises(UserError, match=message):
        check_reshard_after_forward(accelerator(reshards=launched), asked)


@pytest.mark.parametrize(
    ("asked", "launched"),
    [
        ("default", True),
        ("default", False),
        ("default", None),
        ("always", True),
        ("never", False),
        ("never", True),
    ],
)
def test_resharding_that_can_be_is_accepted(asked, launched):
    check_reshard_after_forward(accelerator(reshards=launched), asked)


def accelerator(*, reshards: bool | None) -> Any:
    """What is read of an Accelerator under FSDP2; with None, under another engine."""
    plugin = SimpleNamespace(reshard_after_forward=reshards)
    return SimpleNamespace(is_fsdp2=reshards is not None, state=SimpleNamespace(fsdp_plugin=plugin))
