"""One training run, from configuration to exported model, in the order in which it happens.

    bash train.sh                                                  the quickstart, on whatever
    device is there accelerate launch --config_file accelerate_configs/single.yaml train.py
    --job.config_file
    run.toml accelerate launch --config_file accelerate_configs/fsdp2.yaml train.py
    --job.config_file
    run.toml --training.steps 100

`bash train.sh -h` prints every option. Running the same command again continues an interrupted run.
"""

import sys

from flame_accel.config import CheckpointConfig, Config, parse_or_exit, to_toml
from flame_accel.config.errors import exit_on_user_error

if __name__ == "__main__":
    # wrong options end here, before torch is imported
    run_config = parse_or_exit(sys.argv[1:])

import gc
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from flame_accel import kernels
from flame_accel.checkpoint import (
    CheckpointFolder,
    RunState,
    export_model,
    load_checkpoint,
    save_checkpoint,
)
from flame_accel.data import (
    build_batches,
    build_evaluation_batches,
    load_evaluation_documents,
    load_tokenizer,
    load_training_documents,
    special_token_ids,
    vocabulary_size,
)
from flame_accel.evaluation import sample_text, validate
from flame_accel.models import (
    build_model,
    count_parameters,
    device_peak_flops,
    load_model_config,
    parameter_groups,
    register_models,
    train_flops_per_token,
)
from flame_accel.observe import (
    Journal,
    Meter,
    Progress,
    copy_console_to,
    describe_environment,
    device_name,
    open_console,
    open_run_folder,
    tracker_names,
    write_report,
)
from flame_accel.parallel import build_accelerator, describe_topology, prepare
from flame_accel.training import build_optimizer, learning_rate, train_step

log = logging.getLogger("flame_accel")


def main(config: Config) -> None:
    """Trains, validates and exports one model as the configuration says."""
    run_folder = Path(config.job.dump_folder)
    accelerator = build_accelerator(
        config.training,
        config.comm,
        run_folder=str(run_folder),
        tensorboard_folder=str(run_folder / config.metrics.save_tb_folder),
        trackers=tracker_names(config.metrics),
    )
    try:
        raise_stage(config, accelerator, run_folder)
        train(config, accelerator, run_folder)
    finally:
        accelerator.end_training()


def raise_stage(config: Config, accelerator: Accelerator, run_folder: Path) -> None:
    """Console, run folder, kernels, architectures, randomness."""
    open_console(main_process=accelerator.is_main_process)
    if accelerator.is_main_process:
        environment = describe_environment(accelerator, sys.argv)
        open_run_folder(run_folder, config_toml=to_toml(config), environment=environment)
        copy_console_to(run_folder / "log.txt")
    if config.job.print_args:
        log.info("%s", to_toml(config))
    log.info("devices: %s", describe_topology(accelerator))
    log.info("kernels: %s", kernels.install(config.model.kernels))
    register_models(config.model.custom)
    # what is random inside a step (dropout) differs between ranks; weights and data order have
    # seeds of their own
    set_seed(
        config.training.seed, device_specific=True, deterministic=config.training.deterministic
    )
    if config.training.gc_freq:
        # collecting garbage at steps of our choice keeps ranks from waiting for each other's pauses
        gc.disable()


def train(config: Config, accelerator: Accelerator, run_folder: Path) -> None:
    """The run itself: cast, memory, bill, loop, farewell."""
    training, steps = config.training, config.training.steps
    rank, world_size = accelerator.process_index, accelerator.num_processes

    # the cast
    tokenizer = load_tokenizer(
        config.model.tokenizer_path or str(config.model.config), config.model.trust_remote_code
    )
    with accelerator.main_process_first():
        documents = load_training_documents(training)
        held_out = load_evaluation_documents(config.evaluation, training)
    raw_model = build_model(
        load_model_config(
            str(config.model.config),
            trust_remote_code=config.model.trust_remote_code,
            custom=config.model.custom,
        ),
        vocabulary_size=vocabulary_size(tokenizer),
        **special_token_ids(tokenizer),
        seed=training.seed,
        trust_remote_code=config.model.trust_remote_code,
    )
    parameters = count_parameters(raw_model)
    flops_per_token = train_flops_per_token(raw_model, training.context_len or training.seq_len)
    groups = parameter_groups(raw_model, config.optimizer.weight_decay)
    # no loader and no scheduler: the data deals its own rows out, the rate is a function of the
    # step
    model, optimizer = prepare(accelerator, raw_model, build_optimizer(groups, config.optimizer))

    # the memory
    checkpoints = CheckpointFolder(
        run_folder / config.checkpoint.folder, keep_latest_k=config.checkpoint.keep_latest_k
    )
    state, data_state, rank_state = RunState(), None, {}
    newest = find_checkpoint(accelerator, checkpoints, config.checkpoint)
    if newest is not None:
        state, data_state, rank_state = load_checkpoint(
            accelerator, newest, model=model, optimizer=optimizer
        )
        log.info("continuing after step %d, from %s", state.step, newest)
    batches = build_batches(
        training, documents, tokenizer, rank=rank, world_size=world_size, state=data_state
    )
    held_out_batches = build_evaluation_batches(
        config.evaluation, training, held_out, tokenizer, rank=rank, world_size=world_size
    )
    meter = Meter(
        accelerator,
        flops_per_token=flops_per_token,
        device_peak_flops=device_peak_flops(device_name(accelerator.device)),
        state=rank_state.get("meter"),
    )
    journal = Journal(
        accelerator,
        run_folder,
        options=asdict(config),
        step=state.step,
        tracker_ids=state.tracker_ids,
    )
    state.tracker_ids = journal.tracker_ids

    # the bill
    tokens_per_step = training.batch_size * world_size * training.gradient_accumulation_steps
    tokens_per_step *= training.seq_len
    log.info(
        "model: %s, %s parameters, %s without the embedding",
        raw_model.config.model_type,
        f"{parameters.total:,}",
        f"{parameters.without_embeddings:,}",
    )
    log.info("data: %s, %s documents", training.dataset, f"{len(documents):,}")
    log.info(
        "step: %d rows x %d ranks x %d micro-batches x %d tokens = %s tokens; %d steps",
        training.batch_size,
        world_size,
        training.gradient_accumulation_steps,
        training.seq_len,
        f"{tokens_per_step:,}",
        steps,
    )

    # the loop
    progress = Progress(
        step=state.step,
        steps=steps,
        shown=accelerator.is_main_process,
        colored=not config.metrics.disable_color_printing,
    )
    stream = iter(batches)
    meter.start()
    while state.step < steps:
        lr = learning_rate(
            state.step, config.optimizer, steps=steps, warmup_steps=training.warmup_steps
        )
        with meter.waiting_for_data():
            micro_batches = [to_device(batch, accelerator.device) for batch in next(stream)]
        result = train_step(
            accelerator,
            model,
            optimizer,
            micro_batches,
            lr=lr,
            max_norm=training.max_norm,
            skip_non_finite=training.skip_nan_inf,
            constant_targets=not training.varlen,
        )
        state.step += 1
        state.tokens += tokens_per_step
        meter.add(result, tokens=tokens_per_step)
        progress.advance()

        record: dict[str, Any] = {}
        if state.step == 1 or is_due(state.step, config.metrics.log_freq, steps):
            record |= meter.record(lr=lr)
            meter.stop_if_diverged(training.max_consecutive_skips)
        if held_out_batches and is_due(state.step, config.evaluation.interval, steps):
            with meter.paused():
                record |= validate(accelerator, model, held_out_batches)
        if record:
            journal.write(
                {"step": state.step, "tokens": state.tokens, "epoch": batches.epoch, **record},
                steps=steps,
            )
        if (
            is_due(state.step, config.checkpoint.interval, steps)
            and config.checkpoint.enable_checkpoint
        ):
            with meter.paused():
                save_checkpoint(
                    accelerator,
                    checkpoints,
                    state,
                    model=model,
                    optimizer=optimizer,
                    tokenizer=tokenizer,
                    data_state=batches.state_dict(),
                    rank_state={"meter": meter.state_dict()},
                )
        if training.gc_freq and state.step % training.gc_freq == 0:
            gc.collect()
    progress.close()

    # the farewell
    export_folder = run_folder / "hf"
    export_model(
        accelerator,
        model,
        tokenizer,
        export_folder,
        dtype=getattr(torch, config.checkpoint.export_dtype),
        facts={
            "data": str(training.dataset),
            "tokens": f"{state.tokens:,}",
            "updates": f"{state.step:,}",
            "parameters": f"{parameters.total:,}",
            "tokens per update": f"{tokens_per_step:,}",
            "learning rate": f"{config.optimizer.lr:g} ({config.optimizer.scheduler})",
        },
    )
    log.info("exported: %s", export_folder)
    if accelerator.is_main_process:
        say_farewell(config, run_folder, tokenizer)


def say_farewell(config: Config, run_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """What the exported model writes, and the report. On the main process."""
    sample = ""
    if config.evaluation.sample_tokens:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        sample = sample_text(
            AutoModelForCausalLM.from_pretrained(run_folder / "hf", device_map=device),
            tokenizer,
            prompt=config.evaluation.prompt,
            new_tokens=config.evaluation.sample_tokens,
            seed=config.training.seed,
        )
        log.info("sample of the exported model:\n%s", sample)
    report = write_report(
        run_folder, title=config.job.description or run_folder.name, sample=sample
    )
    log.info("report: %s", report)


def is_due(step: int, interval: int, steps: int) -> bool:
    """Whether periodic work falls on a completed step.

    The last step is always due, and 0 means only then.
    """
    return step == steps or (interval > 0 and step % interval == 0)


def find_checkpoint(
    accelerator: Accelerator, checkpoints: CheckpointFolder, config: CheckpointConfig
) -> Path | None:
    """The checkpoint to continue from, as the main process sees it; None begins a new run."""
    if not config.enable_checkpoint:
        return None
    found = [checkpoints.find(config.load_step) if accelerator.is_main_process else None]
    return broadcast_object_list(found)[0]


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves a micro-batch; from page-locked memory without waiting for it."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


if __name__ == "__main__":
    with exit_on_user_error():
        main(run_config)
