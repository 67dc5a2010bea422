"""Runs the experiments and writes their report.

    python -m tests.torture                       all of them, a few times each
    python -m tests.torture --long                as often as EXPERIMENTS says; hours
    python -m tests.torture --only kill           those whose name contains a word

Exit code 1 if anything did not survive. The report is JSON and a page of HTML.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.torture import damages, interruptions
from tests.torture.laboratory import Laboratory, Outcome, summarize
from tests.torture.report import write_report

# (experiment, counts of the short and of the long version)
EXPERIMENTS = {
    "kill": (interruptions.kill_at_random, 2, 200),
    "kill-two": (partial(interruptions.kill_at_random, ranks=2), 1, 60),
    "kill-fsdp2": (interruptions.kill_fsdp2, 2, 30),
    "kill-one-rank": (interruptions.kill_one_rank, 2, 30),
    "signal": (interruptions.stop_by_signal, 2, 40),
    "signal-two": (partial(interruptions.stop_by_signal, ranks=2), 2, 20),
    "damage": (damages.damage_a_file, 3, 250),
    "manifest": (damages.flip_the_manifest, 200, 3333),
    "writer": (damages.start_a_second_writer, 1, 30),
    "world-size": (damages.change_world_size, 1, 20),
}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--count", type=int, help="of each experiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="folder for torture.json and torture.html")
    arguments = parser.parse_args()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        laboratory = Laboratory(Path(folder), seed=arguments.seed)
        for name, (experiment, short, long) in EXPERIMENTS.items():
            if arguments.only in name:
                count = arguments.count or (long if arguments.long else short)
                for outcome in experiment(laboratory, count):
                    outcomes.append(outcome)
                    _print_progress(outcome, summarize(outcomes)[outcome.experiment])
        laboratory.forker.close()
    if arguments.report:
        write_report(arguments.report, outcomes)
    for name, (survived, total) in summarize(outcomes).items():
        print(f"{name}: {survived} of {total}")
    sys.exit(any(outcome.problems for outcome in outcomes))


def _print_progress(outcome: Outcome, counts: tuple[int, int]) -> None:
    said = "; ".join(outcome.problems) or "survived"
    print(
        f"{outcome.experiment} [{counts[0]}/{counts[1]}] {outcome.what}: {said} "
        f"({outcome.seconds:.1f} s)",
        flush=True,
    )


if __name__ == "__main__":
    main()
