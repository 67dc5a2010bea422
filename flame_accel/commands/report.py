"""Draws the curves of a run folder into its report.html.

The page is drawn in `observe.report`. A run writes it at its end; this command does so again, or
during a run.
"""

import argparse
from pathlib import Path

from flame_accel.config import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("run_folder", type=Path, help="run folder (job.dump_folder)")


def run(arguments: argparse.Namespace) -> None:
    """Writes the page and prints its path."""
    folder: Path = arguments.run_folder
    if not (folder / "metrics.jsonl").is_file():
        raise UsageError(
            "has no metrics.jsonl", where=str(folder), remedy="choose the job.dump_folder of a run"
        )
    from flame_accel.observe.report import write_report

    print(write_report(folder, title=folder.resolve().name))
