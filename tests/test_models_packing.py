"""Packing is refused, by name, for exactly those models of fla that mix documents."""

import pytest

from flame_accel.config import UserError
from flame_accel.models import refuse_packing
from flame_accel.models.catalogue import registered_configs, tiny_config
from flame_accel.models.holes import HOLES
from flame_accel.models.packing import LAW

# that these models do mix documents is a law of test_models_all
MIXING = {
    kernels: {
        name
        for hole in HOLES
        if hole.law == LAW and device in hole.devices.split()
        for name in hole.models.split()
    }
    for kernels, device in {"torch": "cpu", "triton": "cuda"}.items()
}


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_packing_is_refused_by_name(kernels):
    assert MIXING[kernels]
    for model_type in MIXING[kernels]:
        with pytest.raises(UserError, match=f"^training.varlen: {model_type} does not keep packed"):
            refuse_packing(tiny_config(model_type), kernels=kernels)


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_packing_is_accepted_for_all_others(kernels):
    for model_type in registered_configs().keys() - MIXING[kernels]:
        refuse_packing(tiny_config(model_type), kernels=kernels)
