"""One process of a launched run: its options first, then torch, then the run.

`accelerate launch` starts it on every rank: as this file (by `flame-accel train`) or through
`train.py` of a checkout. `commands/train` decides how the processes are launched; `train` is the
run itself.
"""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path


def run_training(argv: Sequence[str]) -> None:
    """Runs the training that a command line asks for; wrong options end here, before torch.

    Args:
        argv: Options of a run, without the program's name.

    Raises:
        SystemExit: With code 2 for wrong options, else the exit code of the user's error.
    """
    from flame_accel.stop_signals import StopSignals

    stop_signals = StopSignals()
    stop_signals.install_handlers()
    from flame_accel.cache_folders import redirect_unwritable_caches
    from flame_accel.config import parse_or_exit
    from flame_accel.config.errors import (
        exit_on_user_error,
        explain_io_errors,
        explain_lack_of_memory,
    )
    from flame_accel.config.secrets import mask_secrets
    from flame_accel.standard_streams import protect_standard_streams

    protect_standard_streams()
    config = parse_or_exit(argv)
    # trackers record the command line
    sys.argv[1:] = map(mask_secrets, sys.argv[1:])
    redirect_unwritable_caches()
    # the million objects that the imports make stay: looking for garbage among them finds none
    gc.disable()
    from flame_accel.parallel import explain_timeout_and_connection_errors
    from flame_accel.train import main

    gc.freeze()
    gc.enable()
    stop_signals.unwinds = True
    with (
        exit_on_user_error(),
        explain_io_errors(),
        explain_timeout_and_connection_errors(config.comm),
        explain_lack_of_memory(),
    ):
        main(config, stop_signals)


def replace_package_folder_by_parent_in_search_path() -> None:
    """Replaces the package's own folder in `sys.path` with the folder that holds the package.

    Python puts the folder of a file that it runs first, where `data`, `config` or `files` of this
    package would hide other packages of that name.
    """
    package = Path(__file__).absolute().parent
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != package.resolve()]
    if str(package.parent) not in sys.path:
        sys.path.insert(0, str(package.parent))


if __name__ == "__main__":
    replace_package_folder_by_parent_in_search_path()
    from flame_accel.process_end import exit_without_teardown

    with exit_without_teardown():
        run_training(sys.argv[1:])
