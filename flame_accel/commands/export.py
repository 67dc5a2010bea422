"""Exports a checkpoint as a Hugging Face model, with its weights in the dtype you choose.

The work is done in `checkpoint`. Every checkpoint is also a Hugging Face model, in fp32, with what
a restart needs in addition.
"""

import argparse
from pathlib import Path

from flame_accel.commands.arguments import add_custom_modules_argument
from flame_accel.commands.loaded_model import find_checkpoint_or_newest
from flame_accel.config import UsageError

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
        raise UsageError(
            "already exists",
            where=str(arguments.output),
            remedy="choose a folder that does not exist",
        )
    checkpoint = find_checkpoint_or_newest(arguments.source)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from flame_accel.hub.export import write_or_replace_export
    from flame_accel.hub.model_card import origin_of_checkpoint
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
    write_or_replace_export(
        arguments.output,
        model,
        weights,
        tokenizer,
        weights_dtype=dtype,
        card_origin=origin_of_checkpoint(checkpoint),
    )
    print(f"exported {checkpoint} to {arguments.output} in {arguments.dtype}")
