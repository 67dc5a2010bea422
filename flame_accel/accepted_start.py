"""What a start changes in the run folder, in one place: once nothing refuses it any more.

Until then the run folder is only read, so that a start that is refused leaves every byte.
"""

from pathlib import Path

from accelerate import Accelerator

from flame_accel import observe
from flame_accel.checkpoint import (
    BestCheckpoint,
    RestoredState,
    StartingPoint,
    delete_leftovers_and_rename_newer_if_enabled,
    find_best_and_link_it,
)
from flame_accel.config import Config, UserError
from flame_accel.data import RunData
from flame_accel.hub.model_sources import describe_model_sources
from flame_accel.io_errors import describe_if_io_error
from flame_accel.parallel import run_on_main_and_broadcast


def change_run_folder_as_start_is_accepted(
    accelerator: Accelerator,
    config: Config,
    start: StartingPoint,
    restored: RestoredState,
    run_data: RunData,
) -> None:
    """Keeps earlier records, sets aside what no later start may load, and describes this start.

    What needs room on the disk comes first, and the description last: with it
    `checkpoint.load_step` has acted.

    The main process writes, and every rank must call this: a start that is refused now is refused
    on all of them, instead of leaving some in a collective.

    Args:
        accelerator: The run's accelerator.
        config: The options.
        start: Where the run starts.
        restored: What was loaded from there.
        run_data: Its sources are recorded.

    Raises:
        UserError: On every rank: the folder cannot be written to.
    """
    run_folder = Path(config.job.dump_folder)

    def change_and_find_best() -> BestCheckpoint | None:
        try:
            observe.keep_earlier_records(
                run_folder,
                begins_anew=restored.checkpoint is None,
                goes_back=start.load_step_acts,
            )
            delete_leftovers_and_rename_newer_if_enabled(
                start, restored.checkpoint, config.checkpoint
            )
            best = None
            if config.checkpoint.enable_checkpoint:
                best = find_best_and_link_it(start.checkpoints, restored.state, config.checkpoint)
            observe.write_run_description_and_open_log(
                accelerator,
                run_folder,
                config,
                step=restored.state.step,
                model_sources=describe_model_sources(config, run_data),
            )
        except OSError as error:
            raise UserError(
                f"the run folder cannot be written to: {describe_if_io_error(error)}",
                where=f"job.dump_folder = {run_folder}",
                remedy="make room there, or see to the permissions, and repeat the command",
            ) from error
        return best

    restored.state.best = run_on_main_and_broadcast(accelerator, change_and_find_best)
