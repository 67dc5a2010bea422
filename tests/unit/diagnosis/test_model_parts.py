"""Which layers and operators of fla a model is made of."""

from flame_accel import kernels
from flame_accel.diagnosis.model_parts import find_reachable_fla_layers_and_operators
from flame_accel.models.catalogue import tiny_config


def test_parts_are_the_same_under_both_kinds_of_kernels():
    with_torch = {
        name: find_reachable_fla_layers_and_operators(tiny_config(name))
        for name in ("gla", "gated_deltanet", "yoco")
    }
    kernels.uninstall()
    try:
        for name, parts in with_torch.items():
            assert find_reachable_fla_layers_and_operators(tiny_config(name)) >= parts - {
                "layers.attn"
            }
    finally:
        kernels.install("torch")
    assert {"layers.gla", "ops.gla.chunk.chunk_gla"} <= with_torch["gla"]
