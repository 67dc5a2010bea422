"""The state of the data stream in a checkpoint: the cursors of all lanes, and which stream it is.

The state of a rank holds its own lanes; `merge_rank_states` joins those of all ranks into one that
any number of ranks, workers and micro-batches can resume from. Nothing here reads data or files.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from flame_accel.data.cursors import LaneCursor, SourceCursor

FORMAT = 2
"""Version of the layout below."""

Identity = Mapping[str, int | float | str | list[float] | None]
"""Everything that must stay the same for cursors to mean the same tokens, by name."""


class StreamState(TypedDict):
    """Where the lanes of one rank, or of all, stand in the data; plain JSON values."""

    format: int
    rows_per_step: int
    steps: int
    """Steps yielded so far."""
    identity: Identity
    first_lane: int
    """Lane of the first cursor; 0 in the state of all lanes."""
    cursors: list[list[Any]]
    """[source, offset, row, *sources] of each lane, where each of `sources` is
    [*position, consumed, skipped, bad, tokens]; all of them integers."""


def to_stream_state(content: Any) -> StreamState:
    """What was read from a file, as a state of this or of another format.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError("it is no position in data")
    if content["format"] == FORMAT and (missing := StreamState.__required_keys__ - content.keys()):
        raise ValueError(f"it has no {min(missing)}")
    return cast(StreamState, content)


def build_rank_state(
    identity: Identity,
    *,
    rows_per_step: int,
    steps: int,
    first_lane: int,
    cursors: Sequence[LaneCursor],
) -> StreamState:
    """The state of the lanes of one rank after `steps` steps."""
    return {
        "format": FORMAT,
        "rows_per_step": rows_per_step,
        "steps": steps,
        "identity": dict(identity),
        "first_lane": first_lane,
        "cursors": [
            [*cursor[:3], *([*source.position, *source[1:]] for source in cursor.sources)]
            for cursor in cursors
        ],
    }


def merge_rank_states(states: Sequence[StreamState]) -> StreamState:
    """Join the states of all data-parallel ranks, in any order, into the state of all lanes.

    Raises:
        ValueError: the states are of different steps or streams, or lanes are missing or duplicate.
    """
    ordered = sorted(states, key=lambda state: state["first_lane"])
    shared = [
        {key: value for key, value in state.items() if key not in ("first_lane", "cursors")}
        for state in ordered
    ]
    if any(other != shared[0] for other in shared):
        raise ValueError(f"the ranks disagree about the data stream: {shared}")
    merged: StreamState = {**ordered[0], "first_lane": 0, "cursors": []}
    cursors = merged["cursors"]
    for state in ordered:
        if state["first_lane"] != len(cursors):
            raise ValueError(f"lane {len(cursors)} is missing or given twice")
        cursors += state["cursors"]
    if len(cursors) != merged["rows_per_step"]:
        raise ValueError(f"{len(cursors)} lanes for {merged['rows_per_step']} rows per step")
    return merged


def read_lane_cursors(state: StreamState, lanes: range) -> list[LaneCursor]:
    """The cursors of some lanes from a merged state.

    Raises:
        ValueError: the state does not hold all of them.
    """
    cursors = [_parse_lane_cursor(*cursor) for cursor in state["cursors"]]
    first = state["first_lane"]
    if lanes.start < first or lanes.stop > first + len(cursors):
        raise ValueError(
            f"lanes {lanes.start} to {lanes.stop - 1} are not in the state of lanes {first} to "
            f"{first + len(cursors) - 1}: merge the states of all ranks first"
        )
    return cursors[lanes.start - first : lanes.stop - first]


def _parse_lane_cursor(
    source: int, offset: int, row: int, *source_cursors: list[int]
) -> LaneCursor:
    counters = len(SourceCursor._fields) - 1
    return LaneCursor(
        source,
        offset,
        row,
        tuple(SourceCursor(tuple(s[:-counters]), *s[-counters:]) for s in source_cursors),
    )
