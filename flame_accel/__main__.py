"""`python -m flame_accel COMMAND`: finds the command's module and runs it."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from flame_accel.cache_folders import replace_unwritable_caches
from flame_accel.config.errors import exit_on_user_error
from flame_accel.standard_streams import protect_standard_streams

COMMANDS = ("data", "doctor", "export", "models", "prepare", "report", "tune")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and runs the command."""
    protect_standard_streams()
    replace_unwritable_caches()
    parser = argparse.ArgumentParser(prog="python -m flame_accel", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = {}
    for name in COMMANDS:
        module = modules[name] = importlib.import_module(f"flame_accel.commands.{name}")
        summary = (module.__doc__ or "").splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
    arguments, others = parser.parse_known_args(argv)
    if others and "run_options" not in arguments:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    # what is no argument of a command that takes the options of a run is one of these
    arguments.run_options = others
    with exit_on_user_error():
        modules[arguments.command].run(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
