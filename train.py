"""Trains one model: the script that `accelerate launch` runs in every process.

    bash train.sh                                                          the quickstart, anywhere
    accelerate launch --config_file accelerate_configs/single.yaml train.py --model.config ...
    accelerate launch --config_file accelerate_configs/fsdp2.yaml train.py --model.config ...

`-h` prints the options. Running the same command again resumes an interrupted run. The run itself
is in flame_accel/train.py; `flame-accel train` launches it without this script.
"""

import sys

from flame_accel.process_end import exit_without_teardown
from flame_accel.train_process import run_training

if __name__ == "__main__":
    with exit_without_teardown():
        run_training(sys.argv[1:])
