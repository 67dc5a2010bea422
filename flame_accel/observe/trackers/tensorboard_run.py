"""TensorBoard: event files, flushed with each record. Readers drop what a later start purges."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flame_accel.observe.evaluations_file import Sample
from flame_accel.observe.trackers.identities import RunIdentity
from flame_accel.observe.trackers.tracker_run import (
    Record,
    TrackerRun,
    count_leading_records_held,
)

FOLDER = "flame_accel"
"""Folder of the curves within metrics.save_tb_folder."""


class TensorboardRun(TrackerRun):
    """The event files of a run, continued by each start with one more."""

    def open(self, records: Sequence[Record], last_valid_step: int) -> int:
        """Reads what the files hold, and purges what follows the records that are complete."""
        self.close()
        parent = self.description.tensorboard_folder
        values_held = _count_values_by_step(parent / FOLDER)
        count = count_leading_records_held(records, values_held, last_valid_step)
        last_step = int(records[count - 1]["step"]) if count else 0
        self.start(
            is_new=self.identity is None,
            project=FOLDER,
            logging_folder=parent,
            purge_step=last_step + 1,
        )
        self.keep_identity(
            RunIdentity(id="", name=FOLDER, file=self.relative_path(parent / FOLDER))
        )
        return count

    def values_of_samples(self, samples: Sequence[Sample]) -> dict[str, object]:
        """As Markdown, for the tab of texts."""
        parts = [f"**{sample['prompt']}**{sample['text']}" for sample in samples]
        return {"samples": "\n\n---\n\n".join(parts)}


def _count_values_by_step(folder: Path) -> dict[int, int]:
    """How many scalars the event files of a folder hold by step, without purged ones."""
    if not any(folder.glob("events.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    accumulator.Reload()
    tags = accumulator.Tags()[SCALARS]
    return Counter(event.step for tag in tags for event in accumulator.Scalars(tag))
