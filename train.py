"""Trains one model: what `accelerate launch` runs on every process.

    bash train.sh                                                          the quickstart, anywhere
    accelerate launch --config_file accelerate_configs/single.yaml train.py --model.config ...
    accelerate launch --config_file accelerate_configs/fsdp2.yaml train.py --model.config ...

`-h` prints the options. Running the same command again resumes an interrupted run. The run itself
is told, step by step, in flame_accel/train.py.
"""

import sys

from flame_accel.train_process import run

if __name__ == "__main__":
    run(sys.argv[1:])
