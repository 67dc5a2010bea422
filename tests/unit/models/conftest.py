"""What every test of models needs: fla's architectures, registered."""

import pytest

from flame_accel.models.registration import register_models


@pytest.fixture(autouse=True)
def registered() -> None:
    register_models()
