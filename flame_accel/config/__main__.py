"""Checks a command line before anything heavy starts: `python -m flame_accel.config [options]`.

Prints nothing and exits 0 when all is well, else prints all problems on stderr and exits 2.
train.sh calls it first, since `accelerate launch` answers exit code 2 with its own traceback.
"""

import sys

from flame_accel.config.parsing import parse_or_exit
from flame_accel.standard_streams import protect_standard_streams

if __name__ == "__main__":
    protect_standard_streams()
    parse_or_exit(sys.argv[1:])
