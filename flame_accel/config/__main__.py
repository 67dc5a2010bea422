"""Checks a command line before anything heavy starts: `python -m flame_accel.config [options]`.

Prints nothing and exits with status 0 if all is well; otherwise prints all problems on stderr and
exits with status 2. `-h` prints the help.
"""

import sys

from flame_accel.config.parsing import parse_or_exit
from flame_accel.standard_streams import protect_standard_streams

if __name__ == "__main__":
    protect_standard_streams()
    parse_or_exit(sys.argv[1:])
