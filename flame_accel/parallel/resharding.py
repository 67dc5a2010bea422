"""When FSDP2 frees gathered weights again: after a module's forward, or only after its backward.

Freed ones are gathered a second time for the backward pass: less memory, more communication.
"""

from typing import Any, Literal

from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from flame_accel.config import UserError
from flame_accel.parallel.blocks import find_blocks

Resharding = Literal["default", "always", "never"]
OPTION = "training.fsdp_reshard_after_forward"


def check_resharding(accelerator: Accelerator, asked: Resharding) -> None:
    """Compares the option with the engine and with what its YAML says.

    Raises:
        UserError: Nothing is sharded, or the two contradict each other.
    """
    if asked == "default":
        return
    if not accelerator.is_fsdp2:
        raise UserError(
            f"{asked}, but no weights are gathered: FSDP2 does not shard this run",
            where=OPTION,
            remedy="launch several processes with fsdp2.yaml, or remove the option",
            exit_code=2,
        )
    # true is the launcher's default, so that it does not speak against never
    if asked == "always" and not _reshards(accelerator):
        raise UserError(
            "always contradicts fsdp_reshard_after_forward: false of the accelerate configuration",
            where=OPTION,
            remedy="set fsdp_reshard_after_forward: true there, or give "
            "--fsdp_reshard_after_forward true to accelerate launch",
            exit_code=2,
        )


def set_resharding(accelerator: Accelerator, model: PreTrainedModel, asked: Resharding) -> None:
    """Sets it for every module that FSDP2 gathers, in place; nothing happens under other engines.

    always frees all of them. never keeps all until their backward. default frees all but what the
    backward pass begins with: the final norm, the head, and the last block, which would be gathered
    again at once. Where the YAML says false, default is never.
    """
    if not accelerator.is_fsdp2:
        return
    root: Any = model
    if asked == "never" or not _reshards(accelerator):
        root.set_reshard_after_forward(False)
    elif asked == "always":
        root.set_reshard_after_forward(True)
    else:
        # accelerate keeps the root's own parameters, the final norm and the head by itself
        last_block(model).set_reshard_after_forward(False)


def last_block(model: PreTrainedModel) -> FSDPModule:
    """The last of the outermost blocks that are gathered as one."""
    blocks = find_blocks(model, where=OPTION)
    return [block for block in blocks if isinstance(block, FSDPModule)][-1]


def _reshards(accelerator: Accelerator) -> bool:
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    return bool(plugin.reshard_after_forward)
