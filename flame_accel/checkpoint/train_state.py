"""The counters of a run that every checkpoint holds, in state.json."""

from dataclasses import dataclass, field


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
