"""Which class continues the runs of which tracker."""

from flame_accel.observe.trackers.identities import TrackerIdentities
from flame_accel.observe.trackers.mlflow_run import MlflowRun
from flame_accel.observe.trackers.tensorboard_run import TensorboardRun
from flame_accel.observe.trackers.tracker_run import RunDescription, TrackerRun
from flame_accel.observe.trackers.trackio_run import TrackioRun
from flame_accel.observe.trackers.wandb_run import WandbRun

_CLASSES: dict[str, type[TrackerRun]] = {
    "mlflow": MlflowRun,
    "tensorboard": TensorboardRun,
    "trackio": TrackioRun,
    "wandb": WandbRun,
}


def build_tracker_run(
    name: str, description: RunDescription, identities: TrackerIdentities
) -> TrackerRun:
    """The run of a tracker by Accelerate's name; any other tracker begins a new run each time."""
    return _CLASSES.get(name, TrackerRun)(name, description, identities)
