"""One training run, from configuration to exported model, in the order in which it happens.

    bash train.sh
    accelerate launch --config_file accelerate_configs/single.yaml train.py --model.config ...
    accelerate launch --config_file accelerate_configs/fsdp2.yaml train.py --model.config ...

`bash train.sh` alone is the quickstart, on whatever device is there; `-h` prints every option.
Running the same command again continues an interrupted run.
"""

import sys

from flame_accel.config import Config, TrainingConfig, parse_or_exit, to_toml
from flame_accel.config.errors import exit_on_user_error

if __name__ == "__main__":
    # wrong options end here, before torch is imported
    run_config = parse_or_exit(sys.argv[1:])

import gc
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from flame_accel import kernels
from flame_accel.checkpoint import (
    CheckpointFolder,
    RunState,
    SaveSchedule,
    export_model,
    restore,
    save_checkpoint,
)
from flame_accel.data import (
    EvaluationBatches,
    RunData,
    StepBatches,
    build_batches,
    build_evaluation_batches,
    load_tokenizer,
    open_data,
    special_token_ids,
    vocabulary_size,
)
from flame_accel.diagnosis.fitness import refuse_unfit_machine
from flame_accel.diagnosis.numerics import refuse_leaks
from flame_accel.evaluation import sample_text, validate
from flame_accel.models import (
    ParameterCount,
    build_model,
    count_parameters,
    device_peak_flops,
    load_model_config,
    refuse_packing,
    register_models,
    train_flops_per_token,
)
from flame_accel.observe import (
    Journal,
    Meter,
    Progress,
    StepProfiler,
    copy_console_to,
    describe_environment,
    device_name,
    get_logger,
    open_console,
    open_run_folder,
    profile_steps,
    stream_record,
    tracker_names,
    write_report,
)
from flame_accel.parallel import (
    build_accelerator,
    compute_precision,
    data_rank,
    data_ranks,
    describe_topology,
    explain_waiting,
    keep_scales_ready,
    limit_waiting,
    patience,
    prepare,
    transform_model,
    unwrap,
)
from flame_accel.training import build_optimizer, learning_rate, step_in_backward, train_step

log = get_logger()


class Cast(NamedTuple):
    """Who plays in a run, after Accelerate has dressed them."""

    tokenizer: PreTrainedTokenizerBase
    data: RunData
    model: nn.Module
    optimizer: AcceleratedOptimizer
    num_parameters: ParameterCount
    flops_per_token: float | None


class Memory(NamedTuple):
    """What a run remembers, and what it writes down."""

    state: RunState
    checkpoints: CheckpointFolder
    batches: StepBatches
    held_out_batches: EvaluationBatches | None
    meter: Meter
    journal: Journal


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
        cast = gather_cast(config, accelerator)
        memory = recall(config, accelerator, cast, run_folder)
        if config.checkpoint.create_seed_checkpoint:
            log.info("initial weights: %s", remember(config, accelerator, cast, memory))
            return
        announce_bill(config, accelerator, cast)
        step = memory.state.step
        with profile_steps(accelerator, config.profiling, run_folder, step=step) as profiler:
            train(config, accelerator, cast, memory, profiler)
        bid_farewell(config, accelerator, cast, memory.state, run_folder)
    finally:
        accelerator.end_training()


def raise_stage(config: Config, accelerator: Accelerator, run_folder: Path) -> None:
    """Console, run folder, kernels, architectures, randomness."""
    open_console(
        main_process=accelerator.is_main_process,
        colored=not config.metrics.disable_color_printing,
    )
    if accelerator.is_main_process:
        environment = describe_environment(accelerator, sys.argv)
        changes = open_run_folder(run_folder, config=config, environment=environment)
        copy_console_to(run_folder / "log.txt")
        for change in changes:
            log.info("changed since the last start: %s", change)
    if config.job.print_args:
        log.info("%s", to_toml(config))
    log.info("devices: %s", describe_topology(accelerator))
    log.info("kernels: %s", kernels.install(config.model.kernels))
    # a restart computes the same bits only with the same configurations of its kernels
    kernels.keep_choices_in(run_folder / "tuning")
    register_models(config.model.custom)
    if config.training.deterministic:
        # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # what is random inside a step (dropout) differs between ranks; weights and data order have
    # seeds of their own
    set_seed(
        config.training.seed, device_specific=True, deterministic=config.training.deterministic
    )
    if config.training.gc_freq:
        # collecting garbage at steps of our choice keeps ranks from waiting for each other's pauses
        gc.disable()


def gather_cast(config: Config, accelerator: Accelerator) -> Cast:
    """Tokenizer, documents, model, optimizer; Accelerate gets the last two."""
    model_options, training = config.model, config.training
    trust_remote_code = model_options.trust_remote_code
    name = str(model_options.config)
    model_config = load_model_config(
        name, trust_remote_code=trust_remote_code, custom=model_options.custom
    )
    if training.varlen:
        refuse_packing(model_config, kernels=kernels.install(model_options.kernels))
        refuse_leaks(model_config, accelerator.device.type)
    for note in refuse_unfit_machine(
        model_config,
        model_options.kernels,
        config.job.dump_folder,
        compute_precision(accelerator),
    ):
        log.info("This machine: %s", note)
    tokenizer = load_tokenizer(model_options.tokenizer_path or name, trust_remote_code)
    with accelerator.main_process_first():
        data = open_data(training, config.evaluation, tokenizer)
    model = build_model(
        model_config,
        vocabulary_size=vocabulary_size(tokenizer),
        **special_token_ids(tokenizer),
        norm_type=model_options.norm_type,
        seed=training.seed,
        trust_remote_code=trust_remote_code,
    )
    # splitting and sharding hide sizes: what needs them looks before
    num_parameters = count_parameters(model)
    flops_per_token = train_flops_per_token(model, training.context_len or training.seq_len)
    transform_model(accelerator, model, training, config.activation_checkpoint, config.float8)
    optimizer = build_optimizer(accelerator, model, config.optimizer)
    # no loader and no scheduler: the data deals its own rows out, the rate is a function of a step
    prepared, prepared_optimizer = prepare(accelerator, model, optimizer, training)
    step_in_backward(prepared_optimizer)
    if config.float8.precompute_float8_dynamic_scale_for_fsdp:
        keep_scales_ready(prepared, prepared_optimizer)
    return Cast(
        tokenizer,
        data,
        prepared,
        prepared_optimizer,
        num_parameters,
        flops_per_token,
    )


def recall(config: Config, accelerator: Accelerator, cast: Cast, run_folder: Path) -> Memory:
    """Brings the run to where it starts, and opens what it reads from and writes to."""
    rank, world_size = data_rank(accelerator), data_ranks(accelerator)
    checkpoints = CheckpointFolder(
        run_folder / config.checkpoint.folder, keep_latest_k=config.checkpoint.keep_latest_k
    )
    state, data_state, rank_states = restore(
        accelerator,
        checkpoints,
        config.checkpoint,
        model=cast.model,
        optimizer=cast.optimizer,
        steps=config.training.steps,
    )
    batches = build_batches(
        config.training,
        cast.data,
        rank=rank,
        world_size=world_size,
        state=data_state,
    )
    held_out_batches = build_evaluation_batches(
        config.training,
        config.evaluation,
        cast.data,
        rank=rank,
        world_size=world_size,
    )
    meter = Meter(
        accelerator,
        flops_per_token=cast.flops_per_token,
        device_peak_flops=device_peak_flops(device_name(accelerator.device)),
        states=[known["meter"] for known in rank_states],
    )
    journal = Journal(
        accelerator,
        run_folder,
        metrics=config.metrics,
        options=asdict(config),
        step=state.step,
        tracker_ids=state.tracker_ids,
    )
    state.tracker_ids = journal.tracker_ids
    return Memory(state, checkpoints, batches, held_out_batches, meter, journal)


def announce_bill(config: Config, accelerator: Accelerator, cast: Cast) -> None:
    """What is about to be spent."""
    training = config.training
    model_type = unwrap(accelerator, cast.model).config.model_type
    total, without_embeddings = (f"{count:,}" for count in cast.num_parameters)
    log.info(
        "model: %s, %s parameters, %s without embeddings", model_type, total, without_embeddings
    )
    log.info("data: %s", cast.data)
    log.info(
        "step: %d rows x %d ranks x %d micro-batches x %d tokens = %s tokens; %d steps",
        training.batch_size,
        data_ranks(accelerator),
        training.gradient_accumulation_steps,
        training.seq_len,
        f"{tokens_per_step(training, accelerator):,}",
        training.steps,
    )


def train(
    config: Config,
    accelerator: Accelerator,
    cast: Cast,
    memory: Memory,
    profiler: StepProfiler,
) -> None:
    """The loop: every line that ends in `is_due` is reached by all ranks alike."""
    training, steps = config.training, config.training.steps
    state, meter = memory.state, memory.meter
    progress = Progress(
        step=state.step,
        steps=steps,
        shown=accelerator.is_main_process,
        colored=not config.metrics.disable_color_printing,
    )
    saves = SaveSchedule(accelerator, config.checkpoint, steps=steps)
    stream = iter(memory.batches)
    first_step = state.step + 1
    meter.start()
    while state.step < steps:
        lr = learning_rate(
            state.step, config.optimizer, steps=steps, warmup_steps=training.warmup_steps
        )
        with meter.waiting_for_data():
            micro_batches = [to_device(batch, accelerator.device) for batch in next(stream)]
        result = train_step(
            accelerator,
            cast.model,
            cast.optimizer,
            micro_batches,
            lr=lr,
            max_norm=training.max_norm,
            skip_non_finite=training.skip_nan_inf,
            constant_targets=memory.batches.constant_targets,
        )
        state.step += 1
        state.tokens += tokens_per_step(training, accelerator)
        meter.add(result, tokens=tokens_per_step(training, accelerator))
        profiler.step()
        progress.advance()
        if state.step == first_step:
            limit_waiting(accelerator, config.comm)

        record: dict[str, Any] = {}
        if state.step == 1 or is_due(state.step, config.metrics.log_freq, steps):
            record |= meter.record(lr=lr)
            memory.journal.write_own(meter.own, step=state.step)
        if memory.held_out_batches and is_due(state.step, config.evaluation.interval, steps):
            # its shapes are others, for which kernels may have to be tuned first
            with meter.paused(), patience(accelerator, then=config.comm.train_timeout_seconds):
                record |= validate(accelerator, cast.model, memory.held_out_batches)
        if record:
            record |= stream_record(accelerator, memory.batches, max_bad=training.max_bad_records)
            position = {"step": state.step, "tokens": state.tokens}
            memory.journal.write(position | record, steps=steps)
            meter.stop_if_diverged(training.max_consecutive_skips)
        if saves.is_due(state.step, reported=bool(record)):
            with meter.paused(), patience(accelerator, then=config.comm.train_timeout_seconds):
                remember(config, accelerator, cast, memory)
        if training.gc_freq and state.step % training.gc_freq == 0:
            gc.collect()
    progress.close()


def remember(config: Config, accelerator: Accelerator, cast: Cast, memory: Memory) -> Path:
    """Saves everything that the run needs to go on from this step, or at its ends the weights."""
    only_weights_in = None
    if config.checkpoint.create_seed_checkpoint:
        # the fresh rest is made again, for any number of ranks
        only_weights_in = torch.float32
    elif config.checkpoint.model_weights_only and memory.state.step == config.training.steps:
        only_weights_in = getattr(torch, config.checkpoint.export_dtype)
    return save_checkpoint(
        accelerator,
        memory.checkpoints,
        memory.state,
        model=cast.model,
        optimizer=cast.optimizer,
        tokenizer=cast.tokenizer,
        data_state=memory.batches.state_dict(),
        rank_state={"meter": memory.meter.state_dict()},
        only_weights_in=only_weights_in,
    )


def bid_farewell(
    config: Config, accelerator: Accelerator, cast: Cast, state: RunState, run_folder: Path
) -> None:
    """The exported model, what it writes, and the report."""
    exported = run_folder / "hf"
    optimizer = config.optimizer
    facts = {
        "data": str(config.training.dataset),
        "tokens": f"{state.tokens:,}",
        "updates": f"{state.step:,}",
        "tokens per update": f"{tokens_per_step(config.training, accelerator):,}",
        "parameters": f"{cast.num_parameters.total:,}",
        "learning rate": f"{optimizer.lr:g}, {optimizer.scheduler}",
    }
    dtype = getattr(torch, config.checkpoint.export_dtype)
    with patience(accelerator, then=config.comm.train_timeout_seconds):
        export_model(accelerator, cast.model, cast.tokenizer, exported, dtype=dtype, facts=facts)
    log.info("exported: %s", exported)
    if not accelerator.is_main_process:
        return
    sample = ""
    if config.evaluation.sample_tokens:
        sample = sample_text(
            AutoModelForCausalLM.from_pretrained(exported, device_map=accelerator.device),
            cast.tokenizer,
            prompt=config.evaluation.prompt,
            new_tokens=config.evaluation.sample_tokens,
            seed=config.training.seed,
        )
        log.info("sample of the exported model:\n%s", sample)
    title = config.job.description or run_folder.name
    log.info("report: %s", write_report(run_folder, title=title, sample=sample))


def tokens_per_step(training: TrainingConfig, accelerator: Accelerator) -> int:
    """Tokens that an update reads, on all ranks."""
    rows = training.batch_size * training.gradient_accumulation_steps * data_ranks(accelerator)
    return rows * training.seq_len


def is_due(step: int, interval: int, steps: int) -> bool:
    """Whether periodic work falls on a completed step; the last always has it, 0 means only it."""
    return step == steps or (interval > 0 and step % interval == 0)


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves a micro-batch; from page-locked memory without waiting for it."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


if __name__ == "__main__":
    with exit_on_user_error(), explain_waiting(run_config.comm):
        main(run_config)
