"""The families of operators that a piece of code enters are recorded, and no others."""

import sys

import torch

from flame_accel.kernels.called_families import record_entered_replacement_modules
from flame_accel.kernels.recurrence.gla import chunk_gla


def test_only_families_that_run_are_recorded():
    q, k, v = torch.randn(3, 1, 8, 2, 4)
    with record_entered_replacement_modules() as families:
        chunk_gla(q, k, v, -torch.rand(1, 8, 2, 4))
    assert families == {"recurrence.gla"}
    chunk_gla(q, k, v, -torch.rand(1, 8, 2, 4))
    assert families == {"recurrence.gla"} and sys.getprofile() is None
