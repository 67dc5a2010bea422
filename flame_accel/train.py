"""One training run, from its configuration to the exported model, in the order in which it happens.

`main` is the table of contents. Components are implemented in modules of their own. Options are
parsed before torch is imported, in `train_process`; processes are launched in `commands/train`.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedConfig

from flame_accel import data, kernels, models, observe, parallel
from flame_accel.accepted_start import change_run_folder_as_start_is_accepted
from flame_accel.checkpoint import (
    CheckpointSaver,
    FailedSaves,
    SaveSchedule,
    StartingPoint,
    find_or_download_starting_point,
    own_run_folder,
    restore_starting_point,
    warn_about_unused_weights,
)
from flame_accel.config import Config, to_toml
from flame_accel.diagnosis.dry_run import print_dry_run
from flame_accel.diagnosis.run_checks import check_run_support_and_log_warnings
from flame_accel.diagnosis.run_summary import log_larger_micro_batch_if_it_fits, log_run_summary
from flame_accel.hub.uploads import HubUploads
from flame_accel.kernels.install import KernelKind
from flame_accel.rewind import rewind_or_stop_if_many_are_skipped
from flame_accel.run_evaluation import build_evaluator_if_configured, evaluate_and_write
from flame_accel.run_outputs import (
    export_and_sample,
    finish_trackers,
    log_and_write_record,
    log_stop_unless_its_save_failed,
    report_at_end,
    save,
)
from flame_accel.run_parts import Components, LoopState
from flame_accel.stop_signals import StopSignals
from flame_accel.training import (
    GarbageCollection,
    batch_to_device_with_host_boundaries,
    build_optimizer,
    build_pass_graphs,
    build_spike_guard_if_enabled,
    is_due,
    learning_rate,
    seed_process_and_set_determinism,
    train_step,
)

log = observe.get_logger()


def main(config: Config, stop_signals: StopSignals) -> None:
    """Trains, validates and exports one model; a `UserError` loses nothing of earlier runs."""
    if config.job.dry_run:
        print_dry_run(config)
        return
    run_folder = Path(config.job.dump_folder)
    accelerator = parallel.build_accelerator(
        config.training, config.comm, run_folder=str(run_folder)
    )
    uploads = HubUploads(accelerator, config.hub, run_folder, custom_modules=config.model.custom)
    with ExitStack() as at_end:
        at_end.callback(parallel.end_training_and_destroy_groups, accelerator)
        at_end.callback(uploads.abort)
        lock = at_end.enter_context(own_run_folder(accelerator, run_folder))
        active_kernels = setup_run(config, accelerator, run_folder)
        if observe.log_if_already_finished(accelerator, run_folder, config):
            uploads.upload_missing_of_finished_run()
            return
        # others wait while one process hashes a checkpoint, downloads or copies data
        with parallel.extended_timeout(accelerator, config.comm.init_timeout_seconds):
            start = find_or_download_starting_point(
                accelerator, run_folder, config.checkpoint, total_steps=config.training.steps
            )
            model_config = models.load_model_config(
                str(config.model.config),
                trust_remote_code=config.model.trust_remote_code,
                custom_modules=config.model.custom,
            )
            check_run_support_and_log_warnings(config, accelerator, model_config, active_kernels)
            uploads.check_access_and_create_repository()
            components = build_components(config, accelerator, model_config, start)
            loop = restore_run(config, accelerator, components, start, uploads)
        lock.keeps_changes = True
        at_end.callback(finish_trackers, config, loop, stop_signals)
        if config.checkpoint.create_seed_checkpoint:
            save(config, loop, last=True)
            loop.failed_saves.raise_if_latest_failed()
            log.info("initial weights: %s", start.checkpoints.checkpoint_path(loop.state.step))
            return
        num_parameters, run_data = components.num_parameters, components.run_data
        log_run_summary(accelerator, config.training, components.model, num_parameters, run_data)
        kernels.apply_tune_kernels_option(
            config.model.tune_kernels,
            components.flops_per_token,
            parallel.tokens_per_step(config.training, accelerator) * config.training.steps,
        )
        with (
            stop_signals.deferred(saves=config.checkpoint.enable_checkpoint),
            # after the end is recorded, so that the report says how the run ended
            report_at_end(config, accelerator, run_folder),
            observe.record_how_block_ends(accelerator, run_folder, lambda: loop.state.step),
            loop.watchdog.watching(),
            loop.saver.finished_at_end(),
            data.explain_lost_workers(),
        ):
            step = loop.state.step
            with observe.profile_steps(accelerator, config.profiling, run_folder, step) as profiler:
                train(config, accelerator, components, loop, profiler, stop_signals)
            with loop.watchdog.long_phase("export"):
                export_and_sample(config, accelerator, components, loop.state, run_folder)
            loop.failed_saves.raise_if_latest_failed()
        wait_seconds = 0 if stop_signals.received else config.hub.wait_seconds
        uploads.upload_export_wait_then_abort(run_folder / "hf", loop.state.step, wait_seconds)


def setup_run(config: Config, accelerator: Accelerator, run_folder: Path) -> KernelKind:
    """Sets up console, kernels ("triton" or "torch", returned), model types and random seeds."""
    observe.setup_console_logging(
        main_process=accelerator.is_main_process,
        colored=not config.metrics.disable_color_printing,
    )
    observe.check_run_folder_and_log_changes(accelerator, run_folder, config)
    if config.job.print_args:
        log.info("%s", to_toml(config))
    log.info("devices: %s", parallel.describe_topology(accelerator))
    active_kernels = kernels.install_configured_kernels(config.model, run_folder)
    observe.log_changed_kernel_packages(accelerator, run_folder)
    models.register_models(config.model.custom)
    seed_process_and_set_determinism(config.training)
    return active_kernels


def build_components(
    config: Config, accelerator: Accelerator, model_config: PreTrainedConfig, start: StartingPoint
) -> Components:
    """Builds tokenizer, data, model and optimizer, and has Accelerate prepare the last two."""
    model_options, training = config.model, config.training
    tokenizer = data.load_tokenizer(
        model_options.tokenizer_path or str(model_options.config), model_options.trust_remote_code
    )
    with accelerator.main_process_first():
        run_data = data.open_data(training, config.evaluation, tokenizer)
    model = models.build_model(
        model_config,
        vocabulary_size=models.padded_or_stored_embedding_rows_or_raise(
            data.vocabulary_size(tokenizer),
            multiple=training.vocab_multiple,
            stored_rows=start.stored_config_if_present().get("vocab_size"),
        ),
        **data.bos_eos_pad_config_kwargs(tokenizer),
        norm_type=model_options.norm_type,
        seed=training.seed,
        trust_remote_code=model_options.trust_remote_code,
        trained_length=training.context_len or training.seq_len,
    )
    # sharding hides the full sizes
    num_parameters = models.count_parameters(model)
    flops_per_token = models.train_flops_per_token(model, training.context_len or training.seq_len)
    parallel.apply_float8_tp_cast_compile_and_checkpointing(
        accelerator, model, training, config.activation_checkpoint, config.float8
    )
    optimizer = build_optimizer(accelerator, model, config.optimizer)
    # batches are already this rank's, and the learning rate is a function of the step
    model, optimizer = parallel.prepare_transformed_model_and_optimizer(
        accelerator, model, optimizer, training, config.float8
    )
    graphs = build_pass_graphs(accelerator, model, optimizer, config)
    return Components(
        tokenizer, run_data, model, optimizer, num_parameters, flops_per_token, graphs
    )


def restore_run(
    config: Config,
    accelerator: Accelerator,
    components: Components,
    start: StartingPoint,
    uploads: HubUploads,
) -> LoopState:
    """Restores the run from where it starts, and builds its batches, meter and metric logger."""
    run_folder = Path(config.job.dump_folder)
    rank, world_size = parallel.dp_rank(accelerator), parallel.dp_size(accelerator)
    restored = restore_starting_point(
        accelerator,
        start,
        config.checkpoint,
        model=components.model,
        optimizer=components.optimizer,
        tokenizer=components.tokenizer,
        total_steps=config.training.steps,
    )
    state, stream_state = restored.state, restored.stream_state
    batches = data.build_step_batches(
        config.training, components.run_data, rank=rank, world_size=world_size, state=stream_state
    )
    evaluator = build_evaluator_if_configured(config, accelerator, components)
    meter = observe.Meter(
        accelerator,
        flops_per_token=components.flops_per_token,
        device_peak_flops=models.device_peak_flops(observe.device_name(accelerator.device)),
        states=restored.meter_states,
    )
    metric_logger = observe.MetricLogger(
        accelerator, run_folder, metrics=config.metrics, options=asdict(config)
    )
    change_run_folder_as_start_is_accepted(
        accelerator, config, start, restored, components.run_data
    )
    metric_logger.start_trackers(state.step)
    if state.step == 0 and config.checkpoint.initial_load_path is None:
        warn_about_unused_weights(str(config.model.config))
    uploads.resume_planned_uploads(start.checkpoints.in_use)
    failed_saves = FailedSaves(config.checkpoint.max_failures)
    watchdog = observe.Watchdog(
        accelerator,
        run_folder,
        watchdog_seconds=config.training.watchdog_seconds,
        train_timeout_seconds=config.comm.train_timeout_seconds,
        step=state.step,
    )
    saver = CheckpointSaver(
        accelerator,
        start.checkpoints,
        async_mode=config.checkpoint.async_mode,
        failed_saves=failed_saves,
        watchdog=watchdog,
        model=components.model,
        optimizer=components.optimizer,
        tokenizer=components.tokenizer,
    )
    skipped_updates = observe.SkippedUpdates(
        accelerator,
        run_folder,
        step=state.step,
        rewinds=state.rewinds,
        batches=batches,
        sigma=config.training.skip_spike_sigma,
    )
    spike_guard = build_spike_guard_if_enabled(accelerator, config.training, state.spike_window)
    batches_per_evaluation = evaluator.num_batches if evaluator else 0
    remaining_time = observe.build_remaining_time(config, evaluation_batches=batches_per_evaluation)
    measures = (meter, remaining_time, metric_logger)
    writers = (*measures, uploads, failed_saves, saver, watchdog, skipped_updates)
    return LoopState(state, start.checkpoints, batches, evaluator, *writers, spike_guard)


def train(
    config: Config,
    accelerator: Accelerator,
    components: Components,
    loop: LoopState,
    profiler: observe.StepProfiler,
    stop_signals: StopSignals,
) -> None:
    """The training loop. Every rank reaches every line: all conditions agree on all ranks.

    Raises:
        StoppedBySignal: After a save, if a signal asked any rank to stop.
    """
    training, steps = config.training, config.training.steps
    state, batches, meter, watchdog = loop.state, loop.batches, loop.meter, loop.watchdog
    step_tokens = parallel.tokens_per_step(training, accelerator)
    progress = observe.build_progress_bar_on_terminal(
        completed_steps=state.step,
        total_steps=steps,
        shown=accelerator.is_main_process,
        colored=not config.metrics.disable_color_printing,
    )
    saves = SaveSchedule(accelerator, config.checkpoint, total_steps=steps)
    any_rank_agrees = parallel.AnyRankAgrees(accelerator)
    garbage = GarbageCollection(training.gc_freq)
    stream = iter(batches)
    first_step, stops = state.step + 1, False
    meter.start_clock()
    while state.step < steps and not stops:
        lr = learning_rate(
            state.step, config.optimizer, total_steps=steps, warmup_steps=training.warmup_steps
        )
        watchdog.enter("data", state.step)
        with meter.waiting_for_data():
            micro_batches = [
                batch_to_device_with_host_boundaries(batch, accelerator.device)
                for batch in next(stream)
            ]
        watchdog.enter("update", state.step)
        result = train_step(
            accelerator,
            components.model,
            components.optimizer,
            micro_batches,
            lr=lr,
            max_norm=training.max_norm,
            skip_non_finite=training.skip_nan_inf,
            constant_targets=batches.constant_targets,
            graphs=components.graphs,
            spike_guard=loop.spike_guard,
        )
        state.step += 1
        state.tokens += step_tokens
        meter.add_step(result, tokens=step_tokens)
        loop.remaining_time.add_step()
        loop.skipped_updates.add_step(state.step, result)
        profiler.step()
        progress.update()
        if state.step == first_step:
            parallel.wait_and_set_train_timeout(accelerator, config.comm)
            # the optimizer has its state now
            if saves.saves_before_last_step(state.step):
                with loop.long_phase("save", accelerator, config.comm):
                    loop.saver.choose_thread_and_log()
        elif state.step == first_step + 1:
            log_larger_micro_batch_if_it_fits(accelerator, training)

        record: dict[str, Any] = {}
        if state.step == 1 or is_due(state.step, config.metrics.log_freq, steps):
            watchdog.enter("record", state.step)
            record |= meter.finish_window(lr=lr)
            loop.remaining_time.add_record()
            loop.metric_logger.write_rank_values_to_own_tensorboard_if_enabled(
                meter.local, step=state.step
            )
        if is_due(state.step, config.evaluation.interval, steps):
            record |= evaluate_and_write(config, accelerator, components, loop)
        if record:
            log_and_write_record(training, accelerator, components, loop, record)
            if rewind_or_stop_if_many_are_skipped(config, accelerator, components, loop):
                progress.update(state.step - progress.n)
                continue
        stops = any_rank_agrees(stop_signals.received is not None)
        is_best = state.best is not None and state.best["step"] == state.step
        if saves.is_due_on_all_ranks(
            state.step, step_was_logged=bool(record), run_stops=stops, is_best=is_best
        ):
            with loop.long_phase("save", accelerator, config.comm):
                save(config, loop, last=stops or state.step == steps)
        garbage.freeze_first_or_collect_if_due(state.step)
    garbage.unfreeze_and_leave_collector_disabled()
    progress.close()
    if stops:
        log_stop_unless_its_save_failed(config.checkpoint, loop)
        stop_signals.stop()
