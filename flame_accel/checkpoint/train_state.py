"""The counters of a run that every checkpoint holds, in state.json."""

from dataclasses import dataclass, field
from typing import TypedDict


class BestCheckpoint(TypedDict):
    """The best checkpoint so far."""

    step: int
    metric: str
    """Key in metrics.jsonl by which it is the best."""
    value: float


@dataclass(kw_only=True, slots=True)
class TrainState:
    """The counters of a run."""

    step: int = 0
    """Completed updates."""
    tokens: int = 0
    """Tokens that those updates read, on all ranks."""
    rewinds: int = 0
    """How many times the run has gone back to a checkpoint, past data whose updates it skipped."""
    spike_window: list[list[float]] = field(default_factory=list)
    """Loss and gradient norm of the updates with which the guard against spikes compares."""
    best: BestCheckpoint | None = None
    """Of `checkpoint.keep_best`; its checkpoint may be this very one."""
