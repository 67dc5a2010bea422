"""Kernels run as compiled on a GPU, and in a process of Triton's interpreter elsewhere."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from flame_accel.kernels import install, uninstall
from tests.helpers.fused_kernels import INTERPRETED, ON_GPU, load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves only the tests of kernels to the process of the interpreter."""
    if INTERPRETED:
        items[:] = [item for item in items if "fused" in getattr(item, "fixturenames", ())]


@pytest.fixture
def fused() -> Iterator[Callable[[str], ModuleType]]:
    """`fused(name)`: a module of the fused kernels, as new."""
    if not (ON_GPU or INTERPRETED):
        pytest.skip("runs in the process of the interpreter")
    # which would refuse to launch kernels
    uninstall()
    yield load
    install()
