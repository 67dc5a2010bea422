"""Makes the report of one run or several side by side: curves, tables and samples on one page.

The page is made in `observe.report`. A run writes its own at its end; this command does so again,
during a run, or for several runs.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from flame_accel.config import UsageError, UserError

FILES_OF_A_RUN = ("metrics.jsonl", "config.toml", "environment.json")
"""A run folder has at least one of them."""
SECONDS_BETWEEN_PAGES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "run_folders", metavar="RUN", type=Path, nargs="+", help="run folder (job.dump_folder)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="file of the page; default: report.html in the run folder, or in the current folder "
        "for several runs",
    )
    parser.add_argument("--title", help="heading of the page; default: job.description")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="also write each chart as PNG and SVG into this folder",
    )
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=SECONDS_BETWEEN_PAGES,
        metavar="SECONDS",
        help="make the page again whenever the runs have new records, until all have finished; an "
        f"open page shows it by itself (default: every {SECONDS_BETWEEN_PAGES} seconds)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the page and prints its path; with `--watch` again and again."""
    folders: list[Path] = arguments.run_folders
    for folder in folders:
        if not any((folder / name).is_file() for name in FILES_OF_A_RUN):
            raise UsageError(
                "has no metrics.jsonl",
                where=str(folder),
                remedy="choose the job.dump_folder of a run",
            )
    if arguments.watch is not None and not arguments.watch >= 1:
        raise UsageError(
            f"{arguments.watch:g} seconds are too short for a page",
            where="--watch",
            remedy="choose at least 1",
        )
    from flame_accel.observe.report import REPORT_FILE, VegaError, write_images, write_page
    from flame_accel.observe.report.vega import PACKAGE

    output = arguments.output or (
        folders[0] / REPORT_FILE if len(folders) == 1 else Path(REPORT_FILE)
    )
    write_page(folders, output, title=arguments.title, reload_seconds=arguments.watch or 0)
    print(output, flush=True)
    if arguments.images is not None:
        try:
            written = write_images(folders, arguments.images)
        except VegaError as error:
            raise UserError(
                f"no pictures: {error}",
                where=f"--images {arguments.images}",
                remedy=f"the page is written; for pictures, install {PACKAGE}",
            ) from error
        print(*written, sep="\n")
    if arguments.watch is not None:
        _watch(folders, output, arguments.title, arguments.watch)


def _watch(folders: Sequence[Path], output: Path, title: str | None, seconds: float) -> None:
    """Makes the page again after each change, until all runs have finished or a Ctrl-C."""
    from flame_accel.observe import get_logger
    from flame_accel.observe.report import write_page
    from flame_accel.observe.run_end import read_finished_step

    drawn = None
    try:
        while any(read_finished_step(folder) is None for folder in folders):
            time.sleep(seconds)
            changes = [_last_change(folder) for folder in folders]
            if changes != drawn:
                try:
                    write_page(folders, output, title=title, reload_seconds=seconds)
                    drawn = changes
                except OSError as error:
                    # the disk may be full for a while
                    get_logger().warning("%s cannot be written: %s", output, error)
    finally:
        # what stays does not load itself again
        write_page(folders, output, title=title)


def _last_change(folder: Path) -> tuple[int, int]:
    """Time and size of the files of a run that grow, of which either changes."""
    files = [path.stat() for path in folder.glob("*.json*")]
    return max((s.st_mtime_ns for s in files), default=0), sum(s.st_size for s in files)
