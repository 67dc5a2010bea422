"""trackio: a database on this machine, or a Space, written by a thread that a kill interrupts.

It finds a run to continue by its name, of which there may be several, and its interface does not
tell what a run holds. So every start writes the whole run: in place of the earlier one where
that is on this machine, else under another name.
"""

import itertools
import os
import secrets
from collections.abc import Sequence
from typing import Any

from flame_accel.observe.evaluations_file import Sample
from flame_accel.observe.trackers.identities import RunIdentity
from flame_accel.observe.trackers.tracker_run import Record, TrackerRun


class TrackioRun(TrackerRun):
    """A run of trackio, written anew by each start."""

    def open(self, records: Sequence[Record], last_valid_step: int) -> int:
        """Deletes the run if this machine has it, and begins it again."""
        self.close()
        name = self._name_after_deleting_earlier_run()
        self.start(is_new=True, name=name, resume="never", embed=False)
        run = self.tracker.run
        self.keep_identity(RunIdentity(id=str(run.id), name=name, url=run.url or ""))
        return 0

    def values_of_samples(self, samples: Sequence[Sample]) -> dict[str, object]:
        """As a table."""
        import trackio

        rows: Any = [[sample["prompt"], sample["text"]] for sample in samples]
        return {"samples": trackio.Table(columns=["prompt", "text"], data=rows)}

    def _name_after_deleting_earlier_run(self) -> str:
        import trackio

        name, earlier = self.description.name, self.identity
        if os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"):
            return name if earlier is None else f"{name}-{secrets.token_hex(2)}"
        try:
            runs = list(trackio.Api().runs(self.description.project))
        except ValueError:
            # the project does not exist yet
            runs = []
        for run in runs:
            if earlier is not None and run.id == earlier.id and not run.delete():
                raise OSError(f"trackio cannot delete its run {earlier.name}, which begins again")
        if earlier is not None:
            return earlier.name
        taken = {run.name for run in runs}
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(each for each in names if each not in taken)
