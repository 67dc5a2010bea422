"""Keeps the records of a run that begins anew, or goes back, in the same folder: `earlier-N/`.

What a resumed run computes again replaces what it had recorded (`metric_logger`); what another
run has recorded, or a line of steps that was left, is never deleted.
"""

import itertools
import os
import shutil
from pathlib import Path

from flame_accel.files import rename_and_sync
from flame_accel.observe.console import get_logger
from flame_accel.observe.evaluations_file import EVALUATIONS_FILE
from flame_accel.observe.metrics_file import METRICS_FILE
from flame_accel.observe.run_end import ENDED_FILE
from flame_accel.observe.skipped_updates import SKIPPED_FILE
from flame_accel.observe.starts import CONFIG_FILE, ENVIRONMENT_FILE
from flame_accel.observe.trackers import TRACKERS_FILE

EARLIER = "earlier-"
COPIED = (
    METRICS_FILE,
    EVALUATIONS_FILE,
    SKIPPED_FILE,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    ENDED_FILE,
    "report.html",
)
MOVED = (*COPIED, "log.txt", TRACKERS_FILE)


def keep_earlier_records(run_folder: Path, *, begins_anew: bool, goes_back: bool) -> None:
    """Puts the records that this start would overwrite into the first free `earlier-N/`.

    Args:
        run_folder: The run folder.
        begins_anew: The run resumes no checkpoint of its own: the records are those of another run,
            and are moved.
        goes_back: The run leaves steps that it had made: their records are copied, since the
            records of the steps before them are its own.

    Raises:
        OSError: They cannot be; copies are removed again.
    """
    metrics = run_folder / METRICS_FILE
    has_records = metrics.is_file() and metrics.stat().st_size > 0
    if not has_records or not (begins_anew or goes_back):
        return
    numbered = (run_folder / f"{EARLIER}{number}" for number in itertools.count())
    folder = next(path for path in numbered if not os.path.lexists(path))
    folder.mkdir()
    try:
        for name in MOVED if begins_anew else COPIED:
            if (run_folder / name).is_file():
                place = rename_and_sync if begins_anew else shutil.copyfile
                place(run_folder / name, folder / name)
    except OSError:
        if not begins_anew:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    get_logger().info("the records that were in %s are kept in %s", run_folder, folder)
