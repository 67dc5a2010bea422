"""A run of a tracker as a copy of metrics.jsonl: what `delivery` asks of it, for any tracker.

Trackers differ in what they keep of a killed process, and in whether they can take a step back.
So all are asked the same when they are opened: of these records, how many of the first ones do
you hold, and nothing else? A tracker that can neither tell nor take back begins a new run and
holds none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flame_accel.observe.console import get_logger
from flame_accel.observe.evaluations_file import Sample
from flame_accel.observe.trackers.identities import RunIdentity, TrackerIdentities

Record = Mapping[str, float]
"""A record of metrics.jsonl: values by key, with the key `step`."""


@dataclass(frozen=True)
class RunDescription:
    """What the trackers are told of a run."""

    project: str
    name: str
    options: Mapping[str, Any]
    """Every option by `section.option`: numbers and text, without secrets."""
    run_folder: Path
    tensorboard_folder: Path


class TrackerRun:
    """A tracker's run; used by one thread. This class does what every tracker of Accelerate can.

    Every opening begins a new run, unless this process has begun the one that would be continued.

    Args:
        name: Accelerate's name of the tracker.
        description: The run.
        identities: Where ids are kept.
    """

    def __init__(
        self, name: str, description: RunDescription, identities: TrackerIdentities
    ) -> None:
        self.name = name
        self.description = description
        self.identities = identities
        self.tracker: Any = None
        """A `GeneralTracker` of Accelerate; None while closed."""
        self._sent_steps: list[int] = []
        self._logged_identity: RunIdentity | None = None

    @property
    def identity(self) -> RunIdentity | None:
        """What the tracker calls the run; None if it does not know it yet."""
        return self.identities.get(self.name)

    def open(self, records: Sequence[Record], last_valid_step: int) -> int:
        """Makes the tracker hold the first of some records and nothing else; may be open already.

        Args:
            records: Of metrics.jsonl, by step.
            last_valid_step: What the tracker holds of later steps is of another history.

        Returns:
            How many of the records it holds.
        """
        steps = [int(record["step"]) for record in records if record["step"] <= last_valid_step]
        if self.tracker is not None and self._sent_steps == steps[: len(self._sent_steps)]:
            return len(self._sent_steps)
        self.close()
        self._sent_steps = []
        self.start(is_new=True)
        self.keep_identity(RunIdentity(id="", name=self.description.name))
        return 0

    def log(self, record: Record, samples: Sequence[Sample] = ()) -> None:
        """Sends a record of a step after all that were sent, with texts generated at that step."""
        values: dict[str, object] = {key: value for key, value in record.items() if key != "step"}
        if samples:
            values |= self.values_of_samples(samples)
        self.tracker.log(values, step=int(record["step"]))
        self._sent_steps.append(int(record["step"]))

    def values_of_samples(self, samples: Sequence[Sample]) -> dict[str, object]:
        """Generated texts as values for `GeneralTracker.log`; none if it shows no text."""
        return {}

    def close(self) -> None:
        """Sends what the tracker has buffered, and ends its part of the run; may be closed."""
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            tracker.finish()

    def start(
        self, *, is_new: bool, project: str = "", logging_folder: Path | None = None, **options: Any
    ) -> None:
        """Starts Accelerate's tracker.

        Args:
            is_new: Whether the tracker is to be told the options of the run.
            project: Other than that of the run.
            logging_folder: For trackers that need one; the run folder unless given.
            options: Keyword arguments of Accelerate's tracker.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        tracker_class = LOGGER_TYPE_TO_CLASS[self.name]
        arguments: list[Any] = [project or self.description.project]
        if tracker_class.requires_logging_directory:
            arguments.append(str(logging_folder or self.description.run_folder))
        tracker = tracker_class(*arguments, **options)
        tracker.start()
        self.tracker = tracker
        if is_new:
            tracker.store_init_configuration(dict(self.description.options))

    def keep_identity(self, identity: RunIdentity) -> None:
        """Writes down what the tracker calls the run, and logs it unless this process has."""
        self.identities.keep(self.name, identity)
        if self._logged_identity != identity:
            self._logged_identity = identity
            words = (f"run {identity.name}", identity.id, identity.url or identity.file)
            get_logger().info("%s: %s", self.name, ", ".join(filter(None, words)))

    def relative_path(self, path: Path) -> str:
        """A path as it is written down: relative if it is in the run folder, which may move."""
        run_folder, path = self.description.run_folder.resolve(), path.resolve()
        return str(path.relative_to(run_folder) if path.is_relative_to(run_folder) else path)


def count_leading_records_held(
    records: Sequence[Record], values_held: Mapping[int, int], last_valid_step: int
) -> int:
    """How many of the first records a tracker holds completely.

    Args:
        records: Of metrics.jsonl, by step.
        values_held: Number of values that the tracker holds by step.
        last_valid_step: Later steps do not count.
    """
    count = 0
    for record in records:
        is_complete = values_held.get(int(record["step"])) == len(record) - 1
        if record["step"] > last_valid_step or not is_complete:
            break
        count += 1
    return count
