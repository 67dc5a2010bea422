"""Fixture of the tests that call fla's layers, or operators by fla's names."""

from collections.abc import Iterator

import pytest

from flame_accel import kernels


@pytest.fixture(scope="module")
def torch_kernels() -> Iterator[None]:
    """The PyTorch implementations in fla's place."""
    kernels.install("torch")
    yield
    kernels.uninstall()
    kernels.install()
