"""What a run writes: records, checkpoints, the exported model, and the report."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from flame_accel.checkpoint import (
    CheckpointFolder,
    TrainState,
    known_best,
    load_checkpoint_or_raise_user_error,
    weights_only_dtype_if_seed_or_last,
)
from flame_accel.checkpoint_files import find_damage
from flame_accel.config import CheckpointConfig, Config, TrainingConfig
from flame_accel.evaluation import try_to_sample_on_main, try_to_write_report_on_main
from flame_accel.hub.export import export_model
from flame_accel.hub.model_card import ModelOrigin
from flame_accel.observe import get_logger, reduce_and_check_data_metrics
from flame_accel.parallel import extended_timeout, run_on_main_and_broadcast
from flame_accel.run_parts import Components, LoopState
from flame_accel.stop_signals import StopSignals

log = get_logger()
SECONDS_FOR_TRACKERS_AFTER_SIGNAL = 5.0


def log_and_write_record(
    training: TrainingConfig,
    accelerator: Accelerator,
    components: Components,
    loop: LoopState,
    metrics: dict[str, Any],
) -> None:
    """Completes the metrics of a step and writes them: console, metrics.jsonl and trackers.

    Raises:
        UserError: More records of the data were bad than `training.max_bad_records`.
    """
    data_metrics = reduce_and_check_data_metrics(
        accelerator,
        loop.batches,
        training.max_bad_records,
        source_names=[dataset.name for dataset in components.run_data.training],
    )
    step = {"step": loop.state.step, "tokens": loop.state.tokens}
    loop.metric_logger.log_and_write_record(
        step | metrics | data_metrics | loop.saver.take_metrics(),
        total_steps=training.steps,
        remaining_seconds=loop.remaining_time.estimate_seconds(loop.state.step),
    )
    loop.skipped_updates.log_and_write()


def finish_trackers(config: Config, loop: LoopState, stop_signals: StopSignals) -> None:
    """Waits for what the trackers still lack, for a shorter time once a signal has come."""
    longest = SECONDS_FOR_TRACKERS_AFTER_SIGNAL if stop_signals.received else math.inf
    loop.metric_logger.finish_trackers(min(config.metrics.wait_seconds, longest))


def log_stop_unless_its_save_failed(checkpoint: CheckpointConfig, loop: LoopState) -> None:
    """Says after which step a signal has stopped the run, and what is saved of it.

    Raises:
        UserError: The save at the stop failed.
    """
    loop.failed_saves.raise_if_latest_failed()
    if checkpoint.enable_checkpoint:
        log.info("stopped and saved after step %d; the same command continues", loop.state.step)
    else:
        log.info("stopped after step %d; nothing is saved without checkpoints", loop.state.step)


def save(config: Config, loop: LoopState, *, last: bool) -> None:
    """Saves what resuming from here needs; logs a failure, which ends the run if it is the last."""
    step, steps = loop.state.step, config.training.steps
    loop.skipped_updates.log_and_write()
    if config.training.max_rewinds:
        skips = loop.meter.sync_and_count_consecutive_skips()
        loop.checkpoints.last_good_step = step - skips
    loop.checkpoints.best_step = loop.state.best["step"] if loop.state.best else None
    loop.state.spike_window = loop.spike_guard.accepted_values() if loop.spike_guard else []

    def upload_if_due(checkpoint: Path) -> None:
        if 0 < step < steps:
            loop.uploads.count_and_upload_due_checkpoint(checkpoint, step)

    loop.saver.save(
        loop.state,
        stream_state=loop.batches.state_dict(),
        meter_state=loop.meter.losses_and_skips(),
        weights_only_dtype=weights_only_dtype_if_seed_or_last(
            config.checkpoint, is_last_step=step == steps
        ),
        is_last=last,
        when_complete=upload_if_due,
    )


def export_and_sample(
    config: Config,
    accelerator: Accelerator,
    components: Components,
    state: TrainState,
    run_folder: Path,
) -> None:
    """Exports the model to `hf/`, and logs a sample of text that it generates."""
    exported = run_folder / "hf"
    state = _load_best_if_it_is_exported(config, accelerator, components, state)
    with extended_timeout(accelerator, config.comm.train_timeout_seconds):
        export_model(
            accelerator,
            components.model,
            components.tokenizer,
            exported,
            dtype=getattr(torch, config.checkpoint.export_dtype),
            card_origin=ModelOrigin(run_folder=run_folder, step=state.step, tokens=state.tokens),
        )
    try_to_sample_on_main(
        accelerator,
        exported,
        run_folder,
        config.evaluation,
        seed=config.training.seed,
        step=state.step,
        tokens=state.tokens,
    )


@contextmanager
def report_at_end(config: Config, accelerator: Accelerator, run_folder: Path) -> Iterator[None]:
    """Writes report.html after a block that raises nothing, which records the end of the run."""
    yield
    try_to_write_report_on_main(accelerator, run_folder, config.job.description)


def _load_best_if_it_is_exported(
    config: Config, accelerator: Accelerator, components: Components, state: TrainState
) -> TrainState:
    """Loads the best checkpoint into the model, with `checkpoint.export_best`.

    Returns:
        The counters of the model that is to be exported.
    """
    best = known_best(state, config.checkpoint)
    if not config.checkpoint.export_best or best is None or best["step"] == state.step:
        return state
    folder = Path(config.job.dump_folder) / config.checkpoint.folder
    checkpoint = CheckpointFolder(folder, keep_latest_k=0).checkpoint_path(best["step"])
    damage = run_on_main_and_broadcast(
        accelerator,
        lambda: find_damage(checkpoint) if checkpoint.is_dir() else "it could not be saved",
    )
    if damage is not None:
        log.warning(
            "the model of the last step is exported, not the best checkpoint, %s: %s",
            *(checkpoint, damage),
        )
        return state
    log.info("exporting the best checkpoint, %s", checkpoint)
    with extended_timeout(accelerator, config.comm.train_timeout_seconds):
        return load_checkpoint_or_raise_user_error(
            accelerator, checkpoint, model=components.model, optimizer=components.optimizer
        ).state
