"""train.py with a disk that hangs when the optimizer's state of the checkpoint of STEP is written.

LONG_PHASE_SECONDS is how long the watchdog waits for it.
"""

import os
import sys
import threading
from pathlib import Path

from flame_accel.checkpoint import snapshot
from flame_accel.checkpoint.optimizer_shards import OptimizerShard
from flame_accel.observe import watchdog
from flame_accel.train_process import run_training

write = snapshot.write_optimizer_shard


def write_or_hang(shard: OptimizerShard, folder: Path) -> None:
    """Writes the shards of other steps."""
    if folder.parent.name.startswith(f"step-{os.environ['STEP']}."):
        threading.Event().wait()
    write(shard, folder)


if __name__ == "__main__":
    snapshot.write_optimizer_shard = write_or_hang
    watchdog.LONG_PHASE_SECONDS = float(os.environ["LONG_PHASE_SECONDS"])
    run_training(sys.argv[1:])
