"""Building an Accelerator: engines and environment of one process."""

import torch
from torch import nn

from flame_accel.parallel import describe_topology


def test_one_process_is_not_wrapped_even_by_a_launcher_of_several(build_on_cpu):
    rank = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    accelerator = build_on_cpu(
        **rank,
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
    )
    assert describe_topology(accelerator) == "1 x cpu, one process, fp32"
    model = nn.Linear(2, 2)
    assert accelerator.prepare(model) is model
    assert not torch.distributed.is_initialized()
