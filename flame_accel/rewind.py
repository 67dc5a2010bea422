"""Going back past bad data: to a checkpoint from before it, and on with the data behind it.

When `training.max_consecutive_skips` updates in a row were skipped, the weights may have gone wrong
before the first of them. With `training.max_rewinds` the run takes its newest checkpoint of before:
weights, optimizer, random states, counters and the window of the guard against spikes. Step, tokens
and with them the learning rate are those of the checkpoint; only the data stays where it is.

Nothing of this is written down for a restart. Until the next checkpoint it starts from the same
one, at its own position in the data, skips the same updates, and goes back in the same way; from
then on the checkpoint has the position and the number of rewinds.
"""

from pathlib import Path

from accelerate import Accelerator

from flame_accel import observe
from flame_accel.checkpoint import (
    SUPERSEDED,
    BestCheckpoint,
    RestoredState,
    find_best_and_link_it,
    load_checkpoint_or_raise_user_error,
)
from flame_accel.config import Config, UserError
from flame_accel.io_errors import describe_if_io_error
from flame_accel.parallel import run_on_main_and_broadcast
from flame_accel.run_parts import Components, LoopState

log = observe.get_logger()


def rewind_or_stop_if_many_are_skipped(
    config: Config, accelerator: Accelerator, components: Components, loop: LoopState
) -> bool:
    """Called at a record: goes back if so many updates in a row were skipped. Waits for the device.

    Every rank must call it.

    Returns:
        Whether it went back: `loop` then has the state of the checkpoint.

    Raises:
        UserError: So many were skipped, and the run must not go back (again), or cannot.
    """
    limit, state = config.training.max_consecutive_skips, loop.state
    skips = loop.meter.sync_and_count_consecutive_skips()
    if not limit or skips < limit:
        return False
    if state.rewinds >= config.training.max_rewinds:
        raise _too_many_skips_error(skips, _describe_rewinds(state.rewinds))
    last_good_step = state.step - skips
    with loop.long_phase("rewind", accelerator, config.comm):
        # it may be the one to go back to, and must not appear after those that are set aside
        loop.saver.wait()
        found = run_on_main_and_broadcast(
            accelerator, lambda: loop.checkpoints.find_newest_to_rewind_to(last_good_step)
        )
        if found is None:
            raise _too_many_skips_error(
                skips, f", and there is no checkpoint up to step {last_good_step} to go back to"
            )
        restored = load_checkpoint_or_raise_user_error(
            accelerator, found, model=components.model, optimizer=components.optimizer
        )

        # a start must not take a checkpoint that holds skipped updates for the newest one
        def set_aside_and_find_best() -> BestCheckpoint | None:
            loop.checkpoints.delete_leftovers_and_rename_newer(found, newer_suffix=SUPERSEDED)
            return find_best_and_link_it(loop.checkpoints, restored.state, config.checkpoint)

        restored.state.best = run_on_main_and_broadcast(accelerator, set_aside_and_find_best)
    log.warning(
        "step %d: the last %d updates were skipped: the run goes back to step %d, %s, and goes on "
        "with the data behind them (rewind %d of at most %d, training.max_rewinds)",
        *(state.step, skips, restored.state.step, found),
        *(state.rewinds + 1, config.training.max_rewinds),
    )
    _replace_state_but_data_position(accelerator, Path(config.job.dump_folder), loop, restored)
    return True


def _replace_state_but_data_position(
    accelerator: Accelerator, run_folder: Path, loop: LoopState, restored: RestoredState
) -> None:
    """Gives the loop the counters of a checkpoint, and records that it has them."""
    state, stream_state, checkpoint = loop.state, restored.stream_state, restored.checkpoint
    assert stream_state is not None and checkpoint is not None
    loop.skipped_updates.write_rewind(state.step, checkpoint.name, stream_state["cursors"])
    state.step, state.tokens = restored.state.step, restored.state.tokens
    # those that the checkpoint knows of are not all: the run may come from another one
    state.rewinds += 1
    state.best = restored.state.best
    loop.meter.go_back(restored.meter_states)
    if loop.spike_guard is not None:
        loop.spike_guard.replace_window(restored.state.spike_window)
    if accelerator.is_main_process:
        try:
            observe.keep_earlier_records(run_folder, begins_anew=False, goes_back=True)
        except OSError as error:
            log.warning("records of steps that are taken back: %s", describe_if_io_error(error))
    loop.metric_logger.go_back(state.step)


def _describe_rewinds(rewinds: int) -> str:
    if not rewinds:
        return ""
    return f", and the run has gone back {rewinds} times (training.max_rewinds)"


def _too_many_skips_error(skips: int, more: str) -> UserError:
    return UserError(
        f"the last {skips} updates were skipped: their gradients were not finite, or they "
        f"were spikes (training.skip_spike_sigma); skipped.jsonl lists them{more}",
        where="training.max_consecutive_skips",
        remedy="resume the last checkpoint with a lower optimizer.lr, a longer "
        "training.warmup_steps or a smaller training.max_norm",
    )
