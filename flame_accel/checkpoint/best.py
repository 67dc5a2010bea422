"""Which checkpoint of a run is the best by a metric of its validation.

It is saved at the validation that finds it, kept by `folder` whatever is pruned, and linked as
`best`. What is known of it is part of every checkpoint's counters, so that a resumed run knows it.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.train_state import BestCheckpoint, TrainState
from flame_accel.config import CheckpointConfig
from flame_accel.config.best_checkpoint import best_is_lowest
from flame_accel.json_text import parse_json_text
from flame_accel.observe import get_logger

log = get_logger()


def note_if_best(
    state: TrainState, evaluation: Mapping[str, float], config: CheckpointConfig
) -> None:
    """Makes the model of this step the best one in `state`, if its evaluation says so.

    Called on every rank, with the same values.

    Args:
        state: Of the run.
        evaluation: The figures of this step, by their keys in metrics.jsonl.
        config: Options of section checkpoint.
    """
    metric = config.keep_best
    if metric is None or not evaluation:
        return
    value = evaluation.get(metric, math.nan)
    if not math.isfinite(value):
        log.warning("step %d: no finite %s to find the best checkpoint by", state.step, metric)
        return
    before = known_best(state, config)
    if before is not None:
        is_better = value < before["value"] if best_is_lowest(config) else value > before["value"]
        if not is_better:
            return
    state.best = BestCheckpoint(step=state.step, metric=metric, value=value)
    log.info("step %d: the best %s so far: %.6g", state.step, metric, value)


def known_best(state: TrainState, config: CheckpointConfig) -> BestCheckpoint | None:
    """The best checkpoint by the metric of the options; None if none is known."""
    best = state.best
    return best if best is not None and best["metric"] == config.keep_best else None


def find_best_and_link_it(
    folder: CheckpointFolder, state: TrainState, config: CheckpointConfig
) -> BestCheckpoint | None:
    """The best checkpoint there is, once a run has loaded and set newer ones aside.

    Called by the main process. If the save of the best one that `state` knows has failed, it is the
    one before, to which the link still leads.

    Returns:
        What is known of it, for every rank's `state`.
    """
    linked = folder.linked_best_path()
    for best in (known_best(state, config), _best_in_state_file(linked, config)):
        if best is not None and folder.checkpoint_path(best["step"]).is_dir():
            folder.link_best(best["step"])
            return best
    folder.link_best(None)
    return None


def _best_in_state_file(checkpoint: Path | None, config: CheckpointConfig) -> BestCheckpoint | None:
    """What a checkpoint knew of the best one, itself included, when it was saved."""
    if checkpoint is None:
        return None
    try:
        content = parse_json_text((checkpoint / "state.json").read_bytes())
        return known_best(TrainState(best=content["best"]), config)
    except (OSError, ValueError, LookupError, TypeError):
        return None
