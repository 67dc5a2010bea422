"""One process of a launched run: its options first, then torch, then the run.

`accelerate launch ... train.py OPTIONS` starts it on every rank. How the processes are launched is
decided in `commands/train`; what a run does is told in `train`.
"""

import sys
from collections.abc import Sequence

from flame_accel.cache_folders import replace_unwritable_caches
from flame_accel.config import parse_or_exit
from flame_accel.config.errors import exit_on_user_error
from flame_accel.standard_streams import protect_standard_streams


def run(argv: Sequence[str]) -> None:
    """Runs the training that a command line asks for; wrong options end here, before torch.

    Args:
        argv: Options of a run, without the program's name.

    Raises:
        SystemExit: With code 2 for wrong options, else the exit code of the user's error.
    """
    protect_standard_streams()
    config = parse_or_exit(argv)
    replace_unwritable_caches()
    from flame_accel.parallel import explain_timeout
    from flame_accel.train import main

    with exit_on_user_error(), explain_timeout(config.comm):
        main(config)


if __name__ == "__main__":
    run(sys.argv[1:])
