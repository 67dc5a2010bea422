"""Trackers of Accelerate (TensorBoard, W&B, trackio, MLflow, ...), each equal to metrics.jsonl.

`enabled` says which ones and whether they can start, `delivery` sends records to one of them from
a thread of its own, `tracker_run` says what it needs of a tracker and does it for any; the other
modules do it for those that can continue a run.
"""

from flame_accel.observe.trackers.delivery import TrackerDelivery
from flame_accel.observe.trackers.enabled import check_trackers_can_start, enabled_tracker_names
from flame_accel.observe.trackers.identities import TRACKERS_FILE, TrackerIdentities
from flame_accel.observe.trackers.known import build_tracker_run
from flame_accel.observe.trackers.tracker_run import RunDescription

__all__ = [
    "TRACKERS_FILE",
    "RunDescription",
    "TrackerDelivery",
    "TrackerIdentities",
    "build_tracker_run",
    "check_trackers_can_start",
    "enabled_tracker_names",
]
