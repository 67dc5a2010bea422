"""trackers.json: under which id, name and link each tracker knows the run.

It lies in the run folder and not in checkpoints: a run that goes back to an older checkpoint
is still the same run of a tracker.
"""

import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flame_accel.config.secrets import mask_secrets
from flame_accel.files import write_json_atomically
from flame_accel.io_errors import describe_if_io_error
from flame_accel.json_text import parse_json_text
from flame_accel.observe.console import get_logger

TRACKERS_FILE = "trackers.json"


@dataclass(frozen=True)
class RunIdentity:
    """What a tracker calls the run."""

    id: str
    name: str
    url: str = ""
    """Where to look at it; empty if the tracker has no such place."""
    file: str = ""
    """The file that holds the records of the latest start, where every start writes another."""


class TrackerIdentities:
    """The identities of a run by tracker, in trackers.json of the run folder. Threads may use it.

    Args:
        run_folder: The run folder; a file that cannot be read counts as none.
    """

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / TRACKERS_FILE
        self._lock = threading.Lock()
        self._identities = _read(self._path)

    def get(self, tracker_name: str) -> RunIdentity | None:
        """What the tracker calls the run; None if it does not know it yet."""
        return self._identities.get(tracker_name)

    def keep(self, tracker_name: str, identity: RunIdentity) -> None:
        """Writes an identity in place of the tracker's earlier one; logs a failure."""
        with self._lock:
            # an address may be given with a password or a token
            identity = replace(
                identity, url=mask_secrets(identity.url), file=mask_secrets(identity.file)
            )
            self._identities[tracker_name] = identity
            content = {name: asdict(each) for name, each in self._identities.items()}
            try:
                write_json_atomically(self._path, content)
            except OSError as error:
                get_logger().warning("%s: %s", self._path, describe_if_io_error(error))


def _read(path: Path) -> dict[str, RunIdentity]:
    try:
        stored = parse_json_text(path.read_bytes())
        return {name: RunIdentity(**identity) for name, identity in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        get_logger().warning(
            "%s cannot be read, and the trackers begin new runs: %s",
            path,
            describe_if_io_error(error),
        )
        return {}
