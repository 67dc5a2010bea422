"""A run that cannot train is refused before anything is built."""

import pytest

from flame_accel.config import UserError
from flame_accel.diagnosis import trainability
from tests.helpers.machines import SICK


def test_a_run_is_refused_before_anything_is_built(train_here, flags, monkeypatch):
    from flame_accel import train

    monkeypatch.setattr(
        trainability, "collect_machine_facts", lambda *arguments: SICK["no C compiler"]
    )
    monkeypatch.setattr(train, "build_components", lambda *arguments: pytest.fail("too late"))
    with pytest.raises(UserError, match="no C compiler") as caught:
        train_here(flags())
    assert caught.value.remedy and "gcc" in caught.value.remedy
