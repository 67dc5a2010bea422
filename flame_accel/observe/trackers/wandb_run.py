"""Weights & Biases: a server that can hardly take steps back, or files that each start writes anew.

Offline, what a process has reported is in the memory of W&B's own process and lost with it, and
of several files with the same id `wandb sync` lets one replace the other. So every start writes
the whole run into its file, and the earlier file gets a name that `wandb sync` does not take.

Online, the server says which step it has last. If steps come again that it has, it is asked to
rewind the run; servers refuse that where the feature is not enabled, and then the run begins
anew under another id.
"""

import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flame_accel.files import rename_and_sync
from flame_accel.observe.console import get_logger
from flame_accel.observe.evaluations_file import Sample
from flame_accel.observe.trackers.identities import RunIdentity
from flame_accel.observe.trackers.tracker_run import Record, TrackerRun

SUPERSEDED = ".superseded"
"""Suffix of an offline file whose records are in a later one."""


class WandbRun(TrackerRun):
    """A run of W&B. Variables of W&B's own (`WANDB_*`) win over what is derived from the run."""

    def open(self, records: Sequence[Record], last_valid_step: int) -> int:
        """Continues the run with its id; online as far as the server allows it."""
        import wandb

        self.close()
        earlier = self.identity
        run_id = earlier.id if earlier else os.environ.get("WANDB_RUN_ID") or _new_id()
        self._supersede_offline_files(run_id)
        if wandb.setup().settings.mode not in ("online", "shared"):
            self._start(run_id)
            return 0
        self._start(run_id, resume=os.environ.get("WANDB_RESUME", "allow"))
        last_step_held = self.tracker.run.starting_step - 1
        if last_step_held <= last_valid_step:
            return sum(record["step"] <= last_step_held for record in records)
        self.close()
        valid = [int(record["step"]) for record in records if record["step"] <= last_valid_step]
        try:
            if valid:
                self._start(run_id, resume_from=f"{run_id}?_step={valid[-1]}")
                return len(valid)
        except wandb.Error as error:
            get_logger().info("wandb: run %s cannot be rewound: %s", run_id, error)
        new_id = _new_id()
        get_logger().warning(
            "wandb: run %s has steps after %d, which come again: its records are sent to a new "
            "run, %s",
            *(run_id, last_valid_step, new_id),
        )
        self._start(new_id, resume="never")
        return 0

    def values_of_samples(self, samples: Sequence[Sample]) -> dict[str, object]:
        """As a table."""
        import wandb

        rows: Any = [[sample["prompt"], sample["text"]] for sample in samples]
        return {"samples": wandb.Table(columns=["prompt", "text"], data=rows)}

    def _supersede_offline_files(self, run_id: str) -> None:
        folder = Path(os.environ.get("WANDB_DIR") or self.description.run_folder)
        for file in folder.glob(f"*wandb/offline-run-*-{run_id}/run-{run_id}.wandb"):
            rename_and_sync(file, file.with_name(file.name + SUPERSEDED))

    def _start(self, run_id: str, **options: Any) -> None:
        name = os.environ.get("WANDB_NAME") or self.description.name
        # first, so that a file of a start that is killed now is known to be the run's
        identity = RunIdentity(id=run_id, name=name)
        self.identities.keep(self.name, self.identity or identity)
        if "WANDB_DIR" not in os.environ:
            options["dir"] = str(self.description.run_folder)
        project = os.environ.get("WANDB_PROJECT", "")
        self.start(is_new=True, project=project, id=run_id, name=name, **options)
        run = self.tracker.run
        file = self.relative_path(Path(run.settings.sync_file)) if run.offline else ""
        self.keep_identity(replace(identity, url=run.url or "", file=file))


def _new_id() -> str:
    return secrets.token_hex(4)
