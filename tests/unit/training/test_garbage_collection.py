"""Python's garbage collector runs at the steps that are asked for."""

import functools
import gc
from types import SimpleNamespace

import pytest

from flame_accel.training import garbage_collection
from tests.helpers.runs import SHORT_RUN


@pytest.mark.covers_option("training.gc_freq")
@pytest.mark.parametrize(("frequency", "collections"), [(3, 2), (0, 0)])
def test_gc_freq_collects_at_its_steps_and_0_leaves_it_to_python(
    train_here, flags, monkeypatch, frequency, collections
):
    called: list[str] = []
    names = ("disable", "collect", "freeze", "unfreeze")
    spy = SimpleNamespace(**{name: functools.partial(called.append, name) for name in names})
    monkeypatch.setattr(garbage_collection, "gc", spy)
    train_here(flags(**SHORT_RUN | {"training.gc_freq": frequency, "training.steps": 6}))
    before = ["disable", "collect", "freeze"] if frequency else []
    assert called == before + ["collect"] * collections + ["unfreeze"] * bool(frequency)
    assert gc.isenabled()
