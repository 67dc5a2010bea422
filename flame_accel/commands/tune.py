"""Tunes the Triton kernels of a model for this GPU, before a run or to ship the result.

A run does the same by itself at its first step; here it happens ahead of time, for both engines and
for generation. The work is in `kernels.tuning`.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flame_accel.commands.arguments import add_run_options
from flame_accel.config import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from flame_accel.kernels.tuning import Tuner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments; those with a dot are the options of a run."""
    add_run_options(
        parser, "model.config", nargs="+", required=True, help="as of a run; also several"
    )
    add_run_options(
        parser,
        *("training.batch_size", "training.seq_len", "training.context_len"),
        type=int,
        help="as of a run: kernels are tuned for one micro-batch",
    )
    add_run_options(parser, "training.varlen", help="documents are packed")
    add_run_options(parser, "training.mixed_precision_param", default="bfloat16")
    parser.add_argument(
        "--output",
        type=Path,
        help="write the configurations to a subfolder of this folder, named after the compute "
        "capability of the GPU (sm_90), instead of the cache",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="tune also what has a configuration already"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs a step of the model, so that every kernel is met, and says what was tuned."""
    from flame_accel import kernels

    if not kernels.triton_has_device():
        raise UserError(
            "there is no Triton device on this machine, so that no kernel can be tuned",
            remedy="run it on the machine with the GPU; on a CPU, PyTorch kernels need no tuning",
        )
    kernels.install("triton")
    # fla's kernels are met in both places: fla's layers, and ours that call some of them
    kernels.install_fused_kernels()

    from flame_accel.kernels.tuning import (
        Tuner,
        detect_gpu_name_and_capability,
        install_autotune_hook,
    )
    from flame_accel.models import register_models
    from flame_accel.observe import setup_console_logging

    setup_console_logging(main_process=True)
    register_models()
    gpu = detect_gpu_name_and_capability()
    folder = arguments.output / gpu.capability if arguments.output else None
    tuner = install_autotune_hook(Tuner(gpu, folder, fresh=arguments.fresh))
    failed = [
        name for name in arguments.config if not _tune_model_if_it_fits(name, arguments, tuner)
    ]
    print(
        f"{len(tuner.tuned)} kernels tuned among {sum(tuner.tuned.values())} candidates; "
        f"their configurations are in {tuner.tuned_folder}"
    )
    if failed:
        raise UserError(
            f"{', '.join(failed)}: no room on this GPU",
            where=f"--training.batch_size {arguments.batch_size}",
            remedy="give a smaller one",
        )


def _tune_model_if_it_fits(model_name: str, arguments: argparse.Namespace, tuner: "Tuner") -> bool:
    """Lets one model meet its kernels; False where it does not fit, the others still may."""
    import torch

    from flame_accel.models import build_model, load_model_config

    config = load_model_config(model_name)
    model = build_model(
        config,
        vocabulary_size=config.vocab_size,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        seed=0,
    )
    torch.nn.Module.cuda(model)
    batch = _random_cuda_batch(arguments, config.vocab_size)
    begin, before = time.perf_counter(), dict(tuner.seconds)
    try:
        for run_step in _steps_that_call_every_kernel(
            model, batch, arguments.mixed_precision_param
        ):
            run_step()
    except torch.OutOfMemoryError as error:
        print(f"{model_name}: {error}")
        return False
    print(
        f"{model_name}: {time.perf_counter() - begin:.0f} s, of which "
        + ", ".join(f"{s - before[what]:.0f} s {what}" for what, s in tuner.seconds.items())
    )
    return True


def _random_cuda_batch(arguments: argparse.Namespace, vocabulary_size: int) -> dict[str, "Tensor"]:
    """A micro-batch as `data` makes them, of random tokens."""
    import torch

    rows, seq_len = arguments.batch_size, arguments.seq_len
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary_size, (rows, seq_len), generator=generator)
    if not arguments.varlen:
        return {"input_ids": ids.cuda(), "labels": ids.cuda()}
    longest, bounds = arguments.context_len or seq_len, [0]
    while bounds[-1] < rows * seq_len:
        length = int(torch.randint(max(longest // 8, 1), longest + 1, (), generator=generator))
        bounds.append(min(bounds[-1] + length, rows * seq_len))
    ids = ids.view(1, -1).cuda()
    bounds = torch.tensor(bounds, dtype=torch.int32, device="cuda")
    return {"input_ids": ids, "labels": ids, "cu_seqlens": bounds}


def _steps_that_call_every_kernel(
    model: "PreTrainedModel", batch: dict[str, "Tensor"], precision: str
) -> list[Callable[[], None]]:
    """Where a run meets kernels: validation and training as each engine computes, and a sample."""
    import torch

    from flame_accel.kernels.fused.replace import fused_kernels_disabled
    from flame_accel.training.loss import accepts_num_items_in_batch

    options: dict[str, Any] = {}
    if accepts_num_items_in_batch(type(model)):
        options["num_items_in_batch"] = batch["labels"].numel()

    def cast_run_backward_and_eval(
        dtype: torch.dtype, context: AbstractContextManager[object]
    ) -> None:
        torch.nn.Module.to(model.train(), dtype)
        for layers in (nullcontext(), fused_kernels_disabled()):
            with context, layers:
                model(**batch, **options).loss.backward()
            model.zero_grad()
        with torch.no_grad(), context:
            model.eval()(**batch)

    def generate_sample() -> None:
        torch.nn.Module.to(model.eval(), torch.float32)
        generate: Any = model.generate
        # the lengths on both sides of what a chunked kernel leaves to a recurrent one
        for length in (1, 100):
            inputs = batch["input_ids"][:1, :length]
            mask = torch.ones_like(inputs)
            with torch.autocast("cuda", torch.bfloat16):
                generate(inputs, attention_mask=mask, max_new_tokens=4, do_sample=False)

    if precision == "float32":
        return [lambda: cast_run_backward_and_eval(torch.float32, nullcontext()), generate_sample]
    autocast = torch.autocast("cuda", torch.bfloat16)
    return [
        lambda: cast_run_backward_and_eval(torch.float32, autocast),
        lambda: cast_run_backward_and_eval(torch.bfloat16, nullcontext()),
        generate_sample,
    ]
