"""hub.json in the run folder: what of the run is on the Hub, and what is still to be uploaded.

A run that was killed is started again with this file; whoever reads it learns which commit holds
which step. It names folders relative to the run folder, and holds no access token.
"""

import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flame_accel import files
from flame_accel.hub.hub_client import BranchQuery
from flame_accel.hub.hub_upload import CommitByBranch
from flame_accel.json_text import parse_json_text

RECORD_FILE = "hub.json"
STAGES_PREFIX = f"{files.TEMPORARY_PREFIX}hub-"
"""Start of the names of the folders, in the run folder, that hold what is being uploaded."""


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

    def covers_tag_and_branches_of(self, older: "PlannedUpload") -> bool:
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
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    """Written into every commit of the run, which is known by it."""

    def has_begun(self) -> bool:
        """Whether the Hub has accepted the run before."""
        return bool(self.finished or self.planned)

    def build_branch_query(self, pattern: str) -> BranchQuery:
        """A question for the branches of these names, a regular expression."""
        known = {name: done.commit for name, done in self.finished.items()}
        return BranchQuery(pattern=pattern, run_id=self.run_id, known=known)

    def record_upload_and_drop_plans(
        self, source: str, step: int, commits: CommitByBranch, checksum: str
    ) -> None:
        """Notes what branches hold now; uploads of it that were planned are so no longer."""
        for revision, commit in commits.items():
            self.finished[revision] = FinishedUpload(
                source=source, step=step, commit=commit, checksum=checksum
            )
        here = {name for name, done in self.finished.items() if done.checksum == checksum}
        self.planned = [
            planned
            for planned in self.planned
            if (planned.source, planned.step) != (source, step) or set(planned.revisions) - here
        ]

    def branches_hold_checksum(self, branches: Iterable[str], checksum: str) -> bool:
        """Whether each of these branches holds this very model."""
        return all(
            branch in self.finished and self.finished[branch].checksum == checksum
            for branch in branches
        )


def read_upload_record_or_empty(
    run_folder: Path, repo_id: str, *, report_damage: Callable[[str], object]
) -> UploadRecord:
    """The record of a run's uploads to a repository; an empty one if there is none to be read.

    Args:
        run_folder: The run folder.
        repo_id: NAMESPACE/NAME, or NAME for whatever namespace the run has uploaded to.
        report_damage: Told that the record is damaged.
    """
    path = run_folder / RECORD_FILE
    if not path.is_file():
        return UploadRecord(repo_id=repo_id)
    try:
        content = parse_json_text(path.read_bytes())
        recorded = content["repo_id"]
        if repo_id not in (recorded, recorded.partition("/")[2]):
            return UploadRecord(repo_id=repo_id, run_id=content["run_id"])
        record = UploadRecord(
            repo_id=recorded,
            finished={name: FinishedUpload(**done) for name, done in content["finished"].items()},
            planned=[
                PlannedUpload(**{**planned, "revisions": tuple(planned["revisions"])})
                for planned in content["planned"]
            ],
            checkpoints_since_upload=content["checkpoints_since_upload"],
            run_id=content["run_id"],
        )
        # what is used later without a further look
        texts = [record.run_id]
        for done in record.finished.values():
            texts += [done.commit, done.checksum]
        for planned in record.planned:
            texts += [planned.source, planned.message, *planned.revisions]
        numbers = [record.checkpoints_since_upload, *(planned.step for planned in record.planned)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("not text")
        if not all(isinstance(number, int) for number in numbers):
            raise TypeError("not a number")
        return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # what is on the Hub is found again: files that are the same are not sent twice
        report_damage(f"{path} is damaged: what the run has uploaded before is not known")
        return UploadRecord(repo_id=repo_id)


def write_upload_record(run_folder: Path, record: UploadRecord) -> None:
    """Writes the record atomically; one that is damaged is kept under another name."""
    # with torch, which a push that is refused does without
    from flame_accel.observe.damaged_records import move_aside

    path = run_folder / RECORD_FILE
    read_upload_record_or_empty(
        run_folder, record.repo_id, report_damage=lambda _: move_aside(path)
    )
    files.write_json_atomically(path, asdict(record))


def read_recorded_repository_or_none(run_folder: Path) -> object:
    """The repository that a run uploads to, as its record says; None without a readable record."""
    try:
        return parse_json_text((run_folder / RECORD_FILE).read_bytes())["repo_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stage_folder(run_folder: Path, planned: PlannedUpload) -> Path:
    """The folder, for one upload alone, that holds its files until it is made."""
    return run_folder / f"{STAGES_PREFIX}{planned.step}-{planned.source.replace('/', '-')}"


def remove_needless_stages(run_folder: Path, record: UploadRecord) -> None:
    """Removes the folders of uploads that are not planned any more."""
    needed = {stage_folder(run_folder, planned) for planned in record.planned}
    for stage in set(run_folder.glob(f"{STAGES_PREFIX}*")) - needed:
        shutil.rmtree(stage, ignore_errors=True)
