"""Exports a checkpoint as a Hugging Face model, with its weights in the dtype you choose.

The work is done in `checkpoint`. Every checkpoint is also a Hugging Face model, in fp32, with what
a restart needs in addition.
"""

import argparse
from pathlib import Path

from flame_accel.commands.arguments import add_custom_modules_argument
from flame_accel.config import UserError

DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "source", type=Path, help="a checkpoint (.../step-N), or a run folder for its newest one"
    )
    parser.add_argument("output", type=Path, help="folder of the exported model; must not exist")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of the exported weights (float32)"
    )
    add_custom_modules_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Exports the model."""
    if arguments.output.exists():
        raise UserError(
            "already exists",
            where=str(arguments.output),
            remedy="choose a folder that does not exist",
        )
    if not arguments.source.is_dir():
        steps = sorted(path.name for path in arguments.source.parent.glob("step-*"))
        raise UserError(
            "no such folder",
            where=str(arguments.source),
            remedy=f"choose one of {', '.join(steps)} there"
            if steps
            else "choose a run folder, or a step-N folder of a run",
        )
    checkpoint = find_checkpoint_or_newest(arguments.source)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from flame_accel.hub import origin_of_checkpoint, write_export
    from flame_accel.models import register_models

    logging.disable_progress_bar()
    register_models(arguments.custom)
    dtype = getattr(torch, arguments.dtype)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, trust_remote_code=False)
    # some models keep a part of their weights in fp32
    weights = {
        name: weight.to(dtype) if weight.is_floating_point() else weight
        for name, weight in model.state_dict().items()
    }
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    write_export(
        arguments.output,
        model,
        weights,
        tokenizer,
        dtype=dtype,
        origin=origin_of_checkpoint(checkpoint),
    )
    print(f"exported {checkpoint} to {arguments.output} in {arguments.dtype}")


def find_checkpoint_or_newest(checkpoint_or_run_folder: Path) -> Path:
    """The checkpoint itself, or the newest one of a run folder.

    Raises:
        UserError: There is no checkpoint, or it is damaged.
    """
    from flame_accel.checkpoint.folder import MANIFEST, STEP_PREFIX, find_checkpoint_damage

    folders = [checkpoint_or_run_folder] if (checkpoint_or_run_folder / MANIFEST).is_file() else []
    if not folders:
        found = checkpoint_or_run_folder.glob(f"*/{STEP_PREFIX}*/{MANIFEST}")
        complete = [m.parent for m in found if m.parent.name.removeprefix(STEP_PREFIX).isdecimal()]
        folders = sorted(complete, key=lambda f: int(f.name.removeprefix(STEP_PREFIX)))
    if not folders:
        raise UserError(
            "contains no complete checkpoint",
            where=str(checkpoint_or_run_folder),
            remedy="choose a run folder, or a step-N folder of a run",
        )
    damage = find_checkpoint_damage(folders[-1])
    if damage is not None:
        raise UserError(
            f"is damaged: {damage}", where=str(folders[-1]), remedy="choose another checkpoint"
        )
    return folders[-1]
