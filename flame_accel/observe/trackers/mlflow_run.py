"""MLflow: a database or a server that stores each record at once, and takes none back.

A step that is logged twice is there twice, so a run with steps that come again is deleted, which
`mlflow` can undo, and begins anew under another id.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flame_accel.files import link_file
from flame_accel.observe.console import get_logger
from flame_accel.observe.evaluations_file import Sample
from flame_accel.observe.trackers.identities import RunIdentity
from flame_accel.observe.trackers.tracker_run import (
    Record,
    TrackerRun,
    count_leading_records_held,
)


class MlflowRun(TrackerRun):
    """A run of MLflow, continued under its id while it holds nothing that comes again."""

    def open(self, records: Sequence[Record], last_valid_step: int) -> int:
        """Asks the run for the steps of each metric."""
        import mlflow

        self.close()
        _create_sqlite_database_if_missing(mlflow.get_tracking_uri())
        client, run_id, count = mlflow.MlflowClient(), self._existing_run_id(), 0
        if run_id is not None:
            keys = client.get_run(run_id).data.metrics
            values_held = Counter(
                metric.step for key in keys for metric in client.get_metric_history(run_id, key)
            )
            count = count_leading_records_held(records, values_held, last_valid_step)
            if len(values_held) > count:
                get_logger().info(
                    "mlflow: run %s has steps that come again: it is deleted, and its records are "
                    "sent to a new one",
                    run_id,
                )
                client.delete_run(run_id)
                run_id, count = None, 0
        self.start(is_new=run_id is None, run_id=run_id, run_name=self.description.name)
        info = self.tracker.tracker.info
        self.keep_identity(
            RunIdentity(id=info.run_id, name=info.run_name, file=mlflow.get_tracking_uri())
        )
        return count

    def log(self, record: Record, samples: Sequence[Sample] = ()) -> None:
        """Sends a record, with keys that MLflow allows."""
        super().log({re.sub(r"[^\w\-. /:]", "_", key): value for key, value in record.items()})

    def _existing_run_id(self) -> str | None:
        """The id of the run to continue; None if there is none, or none any more."""
        import mlflow
        from mlflow.exceptions import MlflowException

        if self.identity is None:
            return None
        try:
            run = mlflow.MlflowClient().get_run(self.identity.id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return self.identity.id if run.info.lifecycle_stage == "active" else None


def _create_sqlite_database_if_missing(tracking_uri: str) -> None:
    """Creates the database beside its place first: one whose tables are half made stays broken."""
    import mlflow

    path = Path(tracking_uri.removeprefix("sqlite:///"))
    if not tracking_uri.startswith("sqlite:///") or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    mlflow.MlflowClient(f"sqlite:///{temporary}").search_experiments()
    # another run may have been quicker; and without hard links MLflow does it
    with suppress(OSError):
        link_file(temporary, path)
    temporary.unlink()
