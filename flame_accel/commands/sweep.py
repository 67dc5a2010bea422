"""Trains several models on the same data, tokens and seed, and compares them in one table.

    flame-accel sweep RECIPE --models gla,delta_net,transformer
    flame-accel sweep RECIPE --models gla --vary optimizer.lr=1e-3,3e-4
    flame-accel sweep mqar_small quickstart --models gla,delta_net --training.seed 1

The arguments are here; which runs these are is decided in `sweep_plan`, how they are started and
what became of them in `sweep_runs`, and the table is made in `sweep_table`.
"""

import argparse
import os
from pathlib import Path

from flame_accel.commands.arguments import argparse_integer_at_least
from flame_accel.commands.sweep_plan import PlannedRun, plan_runs
from flame_accel.commands.sweep_runs import Outcome, check_finished_runs_have_these_options, run_all
from flame_accel.commands.train import count_visible_gpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments; all others are options of every run."""
    parser.add_argument(
        "recipes", nargs="+", metavar="RECIPE", help="run file, or the name of a recipe"
    )
    parser.add_argument(
        "--models",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        default=[],
        metavar="M,M,...",
        help="model presets, JSON files, or architectures of fla, which get the sizes of the "
        "recipe's model (that model alone)",
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="SECTION.OPTION=V,V,...",
        help="a run for each of these values; may be repeated, for all combinations",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of all runs (exp/sweep-RECIPE)"
    )
    parser.add_argument(
        "--at_once",
        type=argparse_integer_at_least(1),
        metavar="N",
        help="runs at the same time (one for each GPU; without a GPU 1)",
    )
    parser.set_defaults(run_options=[])


def run(arguments: argparse.Namespace) -> None:
    """Trains what has not finished yet, prints the table.

    Raises:
        SystemExit: with 1 if a run failed; all others were finished all the same.
    """
    output: Path = arguments.output or Path(
        "exp", "-".join(["sweep", *(Path(recipe).stem for recipe in arguments.recipes)])
    )
    plan = plan_runs(
        arguments.recipes,
        models=arguments.models,
        varied=arguments.vary,
        options=arguments.run_options,
        output=output,
    )
    check_finished_runs_have_these_options(plan)
    num_gpus = count_visible_gpus(os.environ)
    outcomes = run_all(plan, at_once=arguments.at_once or max(num_gpus, 1), num_gpus=num_gpus)
    compare_runs(plan, outcomes)
    failed = [outcome for outcome in outcomes if not outcome.finished]
    for outcome in failed:
        print(f"failed with exit code {outcome.exit_code}: {outcome.run.folder}")
    if failed:
        print("the same command trains only what has not finished")
        raise SystemExit(1)


def compare_runs(plan: list[PlannedRun], outcomes: list[Outcome]) -> None:
    """Prints a table for each recipe, and writes it and a report next to its runs."""
    from flame_accel.commands.sweep_table import render_table
    from flame_accel.files import write_text_atomically
    from flame_accel.observe.report import REPORT_FILE, write_page

    for recipe in dict.fromkeys(run.recipe for run in plan):
        runs = [outcome.run for outcome in outcomes if outcome.run.recipe == recipe]
        with_records = [run for run in runs if (run.folder / "metrics.jsonl").is_file()]
        if not with_records:
            continue
        table = render_table(with_records)
        folder = with_records[0].folder.parent
        print(f"\n{recipe}\n\n{table}")
        write_text_atomically(folder / "table.md", table)
        print(f"table: {folder / 'table.md'}")
        title = f"{recipe}: {len(with_records)} runs"
        write_page([run.folder for run in with_records], folder / REPORT_FILE, title=title)
        print(f"report: {folder / REPORT_FILE}")
