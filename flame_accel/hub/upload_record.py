"""hub.json in the run folder: what of the run is on the Hub, and what is still to be uploaded.

A run that was killed is started again with this file; whoever reads it learns which commit holds
which step. It names folders relative to the run folder, and holds no access token.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flame_accel import files

RECORD_FILE = "hub.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedUpload:
    """A checkpoint or export that is to be uploaded."""

    source: str
    """Its folder, relative to the run folder."""
    step: int
    """Number of completed training steps."""
    revisions: tuple[str, ...]
    """Branches; the first one has the tag."""
    tag: str | None
    message: str
    """First line of the commit message."""

    def replaces(self, older: "PlannedUpload") -> bool:
        """Whether nothing that was promised is missing if only this upload is made."""
        return older.tag in (None, self.tag) and set(older.revisions) <= set(self.revisions)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedUpload:
    """What a branch of the repository holds."""

    source: str
    step: int
    commit: str
    checksum: str
    """Of the files; another one is another model."""


@dataclass(kw_only=True, slots=True)
class UploadRecord:
    """The contents of hub.json."""

    repo_id: str
    """NAMESPACE/NAME on the Hub."""
    finished: dict[str, FinishedUpload] = field(default_factory=dict)
    """By branch."""
    planned: list[PlannedUpload] = field(default_factory=list)
    """The uploads that are not finished, the oldest first."""
    checkpoints_since_upload: int = 0
    """Number of checkpoints since the last one that was planned."""

    def holds(self, checksum: str) -> bool:
        """Whether nothing is planned and a branch holds this very model."""
        return not self.planned and any(
            done.checksum == checksum for done in self.finished.values()
        )

    def has_uploaded(self, planned: PlannedUpload, checksum: str) -> bool:
        """Whether every branch holds this very model."""
        return all(
            revision in self.finished and self.finished[revision].checksum == checksum
            for revision in planned.revisions
        )


def read_record(run_folder: Path, repo_id: str) -> UploadRecord | None:
    """The record of a run's uploads to this repository; None without one that can be read."""
    path = run_folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["repo_id"] != repo_id:
            return None
        return UploadRecord(
            repo_id=repo_id,
            finished={name: FinishedUpload(**done) for name, done in content["finished"].items()},
            planned=[
                PlannedUpload(**{**planned, "revisions": tuple(planned["revisions"])})
                for planned in content["planned"]
            ],
            checkpoints_since_upload=content["checkpoints_since_upload"],
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        # what is on the Hub is found again: files that are the same are not sent twice
        return None


def write_record(run_folder: Path, record: UploadRecord) -> None:
    """Writes the record atomically."""
    files.write_json_atomically(run_folder / RECORD_FILE, asdict(record))
