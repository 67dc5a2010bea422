"""When FSDP2 frees gathered weights: after a module's forward, or only after its backward.

Weights that are freed after the forward are gathered again for the backward pass: less memory, more
communication.
"""

from typing import Any, Literal

from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from flame_accel.config import UsageError
from flame_accel.parallel.blocks import find_blocks

ReshardAfterForward = Literal["default", "always", "never"]
OPTION = "training.fsdp_reshard_after_forward"


def check_reshard_after_forward(accelerator: Accelerator, requested: ReshardAfterForward) -> None:
    """Checks training.fsdp_reshard_after_forward against the engine and its YAML.

    Raises:
        UserError: Nothing is sharded, or option and YAML contradict each other.
    """
    if requested == "default":
        return
    if not accelerator.is_fsdp2:
        raise UsageError(
            f"{requested}, but no weights are gathered: FSDP2 does not shard this run",
            where=OPTION,
            remedy="launch several processes with fsdp2.yaml, or remove the option",
        )
    # true is the launcher's default, so that it does not speak against never
    if requested == "always" and not _yaml_reshards_after_forward(accelerator):
        raise UsageError(
            "always contradicts fsdp_reshard_after_forward: false of the accelerate configuration",
            where=OPTION,
            remedy="set fsdp_reshard_after_forward: true there, or give "
            "--fsdp_reshard_after_forward true to accelerate launch",
        )


def set_reshard_after_forward(
    accelerator: Accelerator, model: PreTrainedModel, requested: ReshardAfterForward
) -> None:
    """Sets when every module that FSDP2 gathers is freed, in place; other engines change nothing.

    "always" frees all after their forward, "never" after their backward. "default" frees all but
    those with which the backward pass begins, since they would be gathered again at once: the final
    norm, the head, and the last block. Where the YAML says false, "default" means "never".
    """
    if not accelerator.is_fsdp2:
        return
    root: Any = model
    if requested == "never" or not _yaml_reshards_after_forward(accelerator):
        root.set_reshard_after_forward(False)
    elif requested == "always":
        root.set_reshard_after_forward(True)
    else:
        # accelerate keeps the root's own parameters, the final norm and the head by itself
        _find_last_sharded_block(model).set_reshard_after_forward(False)


def _find_last_sharded_block(model: PreTrainedModel) -> FSDPModule:
    """The last block that FSDP2 gathers as a unit."""
    blocks = find_blocks(model, needed_by_option=OPTION)
    return [block for block in blocks if isinstance(block, FSDPModule)][-1]


def _yaml_reshards_after_forward(accelerator: Accelerator) -> bool:
    """What the YAML says; true is the launcher's default."""
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    return bool(plugin.reshard_after_forward)
