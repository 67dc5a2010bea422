"""The command line, `flame-accel COMMAND` or `python -m flame_accel COMMAND`: runs the command.

Each command is a module of `commands/`, which says what it does and takes.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from flame_accel import __version__
from flame_accel.cache_folders import redirect_unwritable_caches
from flame_accel.config.errors import (
    exit_on_interrupt,
    exit_on_user_error,
    explain_io_errors,
)
from flame_accel.standard_streams import protect_standard_streams

COMMANDS = (
    "train",
    "data",
    "doctor",
    "evaluate",
    "export",
    "generate",
    "models",
    "prepare",
    "push",
    "report",
    "sweep",
    "tune",
)
SCRIPT = "flame-accel"
"""Name of the console command that installing the package creates."""


@exit_on_interrupt()
def main(argv: Sequence[str] | None = None) -> None:
    """Parses a command line, that of this process unless given, and runs the command."""
    protect_standard_streams()
    redirect_unwritable_caches()
    argv = sys.argv[1:] if argv is None else argv
    started_by_script = Path(sys.argv[0]).name.startswith(SCRIPT)
    parser = argparse.ArgumentParser(
        prog=SCRIPT if started_by_script else "python -m flame_accel",
        description="Train Flash Linear Attention language models with Hugging Face Accelerate.",
        epilog="COMMAND -h explains a command and lists its arguments.",
    )
    parser.add_argument("--version", action="version", version=f"flame_accel {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = {}
    for name in COMMANDS:
        module = modules[name] = importlib.import_module(f"flame_accel.commands.{name}")
        summary = (module.__doc__ or "").splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
    with exit_on_user_error(), explain_io_errors():
        if list(argv[:1]) == ["train"]:
            # all arguments are options of a run, -h among them
            arguments, others = argparse.Namespace(command="train"), list(argv[1:])
        else:
            arguments, others = parser.parse_known_args(argv)
            if others and "run_options" not in arguments:
                parser.error(f"unrecognized arguments: {' '.join(others)}")
        # arguments that a command does not declare are options of a run
        arguments.run_options = others
        modules[arguments.command].run(arguments)


if __name__ == "__main__":
    main()
