"""Draws the curves of a run folder into its report.html.

The drawing is in `observe.report`; training ends with it, this command makes it again, also while a
run goes on.
"""

import argparse
from pathlib import Path

from flame_accel.config import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("run_folder", type=Path, help="job.dump_folder of the run")


def run(arguments: argparse.Namespace) -> None:
    """Writes the page and says where."""
    from flame_accel.observe.report import write_report

    folder: Path = arguments.run_folder
    if not (folder / "metrics.jsonl").is_file():
        raise UserError(
            "has no metrics.jsonl", where=str(folder), remedy="name the job.dump_folder of a run"
        )
    print(write_report(folder, title=folder.resolve().name))
