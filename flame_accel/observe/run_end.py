"""ended.json: why, when and after which step a run ended, and whether it has finished."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from accelerate import Accelerator

from flame_accel.config import Config, UserError
from flame_accel.config.secrets import mask_secrets
from flame_accel.files import write_json_atomically
from flame_accel.io_errors import describe_if_io_error
from flame_accel.observe.console import get_logger, log_to_file_only
from flame_accel.observe.damaged_records import DamagedRecordError, read_json_object, warn_once
from flame_accel.observe.starts import has_load_step_acted
from flame_accel.parallel import run_on_main_and_broadcast
from flame_accel.stop_signals import StoppedBySignal

ENDED_FILE = "ended.json"


def log_if_already_finished(accelerator: Accelerator, run_folder: Path, config: Config) -> bool:
    """Whether the run in a folder has nothing left to do; it then keeps every byte.

    Every rank must call it.
    """
    step = run_on_main_and_broadcast(accelerator, lambda: read_finished_step(run_folder))
    if step is None or step < config.training.steps:
        return False
    load_step = config.checkpoint.load_step
    if load_step not in (-1, step) and not run_on_main_and_broadcast(
        accelerator, lambda: has_load_step_acted(run_folder, load_step)
    ):
        # the run goes on from an earlier checkpoint, as it was asked to
        return False
    get_logger().info(
        "%s: this run has finished, after step %d; nothing in it is changed. To train on, raise "
        "training.steps; to train anew, choose another job.dump_folder",
        run_folder,
        step,
    )
    return True


@contextmanager
def record_how_block_ends(
    accelerator: Accelerator, run_folder: Path, get_step: Callable[[], int]
) -> Iterator[None]:
    """Writes to ended.json why, when and after which step the block, and with it the run, ended.

    The reasons are `finished`, `signal` and `error`; an error is also written to log.txt. The main
    process writes; an I/O error in that is logged.

    Args:
        accelerator: The run's accelerator.
        run_folder: The run folder.
        get_step: Returns the number of completed updates.
    """
    try:
        yield
    except StoppedBySignal as stop:
        _write_run_end(accelerator, run_folder, "signal", get_step(), stop.signal_name)
        raise
    except BaseException as error:
        what = f"{type(error).__name__}: {mask_secrets(str(error))}"
        # the console shows it at the end of the process
        log_to_file_only(
            str(error) if isinstance(error, UserError) else traceback.format_exc().rstrip()
        )
        _write_run_end(accelerator, run_folder, "error", get_step(), what)
        raise
    _write_run_end(accelerator, run_folder, "finished", get_step(), None)


def _write_run_end(
    accelerator: Accelerator, run_folder: Path, reason: str, step: int, what: str | None
) -> None:
    if accelerator.is_main_process:
        try:
            write_ended_file(run_folder, reason, step, what)
        except OSError as error:
            get_logger().warning("%s: %s", ENDED_FILE, describe_if_io_error(error))


def write_ended_file(run_folder: Path, reason: str, step: int, what: str | None) -> None:
    """Writes ended.json.

    Args:
        run_folder: The run folder.
        reason: `finished`, `signal`, `error` or `watchdog`.
        step: Number of completed updates.
        what: More about the reason, in words.
    """
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = {"reason": reason, "step": step, "time": time} | ({"what": what} if what else {})
    write_json_atomically(run_folder / ENDED_FILE, content)


def read_finished_step(run_folder: Path) -> int | None:
    """The step at which the run in a folder finished; None if it has not."""
    path = run_folder / ENDED_FILE
    if not path.is_file():
        return None
    try:
        ended = read_json_object(path)
        if ended.get("reason") not in ("finished", "signal", "error", "watchdog"):
            raise DamagedRecordError("does not say why the run ended")
        if ended["reason"] == "finished" and type(ended.get("step")) is not int:
            raise DamagedRecordError("does not say after which step the run ended")
    except DamagedRecordError as error:
        warn_once(path, str(error), "the run continues as if it had been killed")
        return None
    return ended["step"] if ended["reason"] == "finished" else None
