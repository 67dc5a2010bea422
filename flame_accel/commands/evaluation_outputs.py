"""Where the results of `flame-accel evaluate` go: files, the run's record, its model card.

The run folder is only read while a run is going on in it. How a record is made of results is
decided in `evaluation.harness.results`, what the card says in `hub.card_benchmarks`.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from flame_accel.checkpoint.run_lock import RunLock
from flame_accel.config import UserError
from flame_accel.evaluation.harness.results import (
    EvaluatedModel,
    ReportedMetrics,
    compute_average,
    make_records,
)
from flame_accel.evaluation.harness.tasks import LoadedTasks
from flame_accel.files import write_text_atomically
from flame_accel.hub.model_card import CARD_FILE, STATE_FILE, ModelOrigin, write_model_card
from flame_accel.hub.uploaded_files import find_run_folder_of_model, has_checkpoint_manifest
from flame_accel.json_text import parse_json_text
from flame_accel.observe import get_logger
from flame_accel.observe.evaluations_file import (
    EVALUATIONS_FILE,
    Evaluation,
    EvaluationsFile,
    read_evaluations,
)
from flame_accel.observe.metrics_file import METRICS_FILE, read_records
from flame_accel.observe.report import REPORT_FILE, VegaError, write_page
from flame_accel.observe.run_end import read_finished_step
from flame_accel.observe.tensorboard_evaluations import write_evaluations_to_tensorboard

RESULTS_FOLDER = "lm_eval"
"""Of a run: all that lm-eval returned, one file per evaluation."""
LOCK_WAIT_SECONDS = 20.0
"""For another evaluation that writes its results at the same time."""


class RunOfModel(NamedTuple):
    """The run whose record the results go into."""

    folder: Path
    model: EvaluatedModel


class Outputs(NamedTuple):
    """Where results go."""

    run: RunOfModel | None
    """None: the model lies in no run folder, or the run is only read."""
    files_folder: Path
    """For the files with all of the results."""
    notice: str | None
    """Why there is no run, for the user."""


def choose_outputs(model_name: str, output_path: Path | None) -> Outputs:
    """Decides where the results of a model go.

    Args:
        model_name: The folder of the model, or its name on the Hub.
        output_path: Folder that the user gives for the files.

    Raises:
        UserError: The run of the model is going on, so that nothing may be written into its
            folder, and the user gives no other.
    """
    folder = Path(model_name)
    run_folder = find_run_folder_of_model(folder) if folder.is_dir() else None
    label = folder.name if folder.is_dir() else model_name.replace("/", "__")
    elsewhere = (output_path or Path(RESULTS_FOLDER)) / label
    if run_folder is None:
        return Outputs(None, elsewhere, "the model lies in no run folder")
    model = _identify_model_of_run(folder, run_folder)
    label = f"{run_folder.name}-{label}"
    if model is None:
        notice = f"the step of {folder} is not known: its run went on after it was exported"
        return Outputs(None, (output_path or Path(RESULTS_FOLDER)) / label, notice)
    try:
        # one process of a launch writes, and asks
        if os.environ.get("RANK", "0") == "0":
            with hold_run_lock(run_folder, wait_seconds=0.0):
                pass
    except UserError as error:
        if output_path is None:
            raise UserError(
                f"nothing can be written to this run folder now: {error.what}",
                where=str(run_folder),
                remedy="give another folder for the results, --output_path FOLDER, or wait for it",
            ) from error
        notice = f"{run_folder} is only read: {error.what}"
        return Outputs(None, output_path / label, notice)
    files_folder = run_folder / RESULTS_FOLDER if output_path is None else output_path / label
    return Outputs(RunOfModel(run_folder, model), files_folder, None)


def _identify_model_of_run(folder: Path, run_folder: Path) -> EvaluatedModel | None:
    """None for an export of which the step is not known."""
    label = folder.resolve().relative_to(run_folder.resolve()).as_posix()
    if has_checkpoint_manifest(folder):
        state = parse_json_text((folder / STATE_FILE).read_bytes())
        return EvaluatedModel(label=label, step=state["step"], tokens=state["tokens"])
    step = read_finished_step(run_folder)
    tokens = None if step is None else _find_tokens_of_step(run_folder, step)
    if step is None or tokens is None:
        return None
    return EvaluatedModel(label=label, step=step, tokens=tokens)


def _find_tokens_of_step(run_folder: Path, step: int) -> int | None:
    metrics = run_folder / METRICS_FILE
    records = read_records(metrics) if metrics.is_file() else []
    return next((int(r["tokens"]) for r in reversed(records) if r["step"] == step), None)


@contextmanager
def hold_run_lock(run_folder: Path, *, wait_seconds: float) -> Iterator[None]:
    """Holds the lock of a run folder in the block, as a run does; leaves no trace of it.

    Args:
        run_folder: The run folder.
        wait_seconds: How long to wait for one who holds it.

    Raises:
        UserError: Another process holds it, or the folder cannot be written to.
    """
    lock, deadline = RunLock(run_folder), time.monotonic() + wait_seconds
    while True:
        try:
            lock.acquire()
            break
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.release()


def write_result_files(
    folder: Path, results: Mapping[str, Any], samples: Mapping[str, Sequence[Any]] | None
) -> Path:
    """Writes all that lm-eval returned, with the names that lm-eval gives such files.

    Args:
        folder: Created if missing.
        results: Without the samples.
        samples: By task: requests and answers; None: they are not kept.

    Returns:
        The file of the results.
    """
    from lm_eval.utils import handle_non_serializable

    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%S.%f")
    folder.mkdir(parents=True, exist_ok=True)
    for task, records in (samples or {}).items():
        lines = (
            json.dumps(record, default=handle_non_serializable, ensure_ascii=False)
            for record in records
        )
        write_text_atomically(
            folder / f"samples_{task.replace('/', '__')}_{now}.jsonl",
            "".join(f"{line}\n" for line in lines),
        )
    path = folder / f"results_{now}.json"
    text = json.dumps(results, default=handle_non_serializable, indent=2, ensure_ascii=False)
    write_text_atomically(path, text + "\n")
    return path


def record_in_run(run: RunOfModel, records: Sequence[Evaluation]) -> list[Path]:
    """Adds records to evaluations.jsonl of a run, and writes again what shows them.

    That is the card of its export, its report, and TensorBoard if the run has used it.

    Returns:
        The files that were written.

    Raises:
        UserError: A run has begun in the folder, or the file cannot be written.
    """
    with hold_run_lock(run.folder, wait_seconds=LOCK_WAIT_SECONDS):
        file = EvaluationsFile(run.folder)
        # a run that was killed may have left half a line
        file.go_back(sys.maxsize)
        for record in records:
            file.append(record)
        recorded = read_evaluations(run.folder)
        kept = {(each.step, each.kind, each.name) for each in recorded}
        if any((each.step, each.kind, each.name) not in kept for each in records):
            raise UserError(
                "the results could not be added",
                where=str(run.folder / EVALUATIONS_FILE),
                remedy="make room there, or mend the disk, and repeat the command",
            )
        written = [file.path]
        export = run.folder / "hf"
        if export.is_dir() and read_finished_step(run.folder) == run.model.step:
            origin = ModelOrigin(
                run_folder=run.folder, step=run.model.step, tokens=run.model.tokens
            )
            write_model_card(export, origin)
            written.append(export / CARD_FILE)
        if (report := run.folder / REPORT_FILE).is_file():
            try:
                write_page([run.folder], report)
                written.append(report)
            except VegaError as error:
                get_logger().warning("%s stays as it is: %s", report, error)
        curves = write_evaluations_to_tensorboard(run.folder, recorded)
        if curves is not None:
            written.append(curves)
    return written


def print_and_keep_results(
    results: Mapping[str, Any], tasks: LoadedTasks, outputs: Outputs
) -> None:
    """Prints the tables of results, and writes them where `choose_outputs` has decided.

    Args:
        results: As `evaluate_tasks` returns them.
        tasks: That were evaluated.
        outputs: Where the results go.

    Raises:
        UserError: The run's record cannot be written; the file of the results is there already.
    """
    from lm_eval.utils import make_table

    reported_by_group = {
        group.name: reported
        for group in tasks.list_groups()
        if (reported := ReportedMetrics.from_group_metadata(group.metadata)) is not None
    }
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    for group, reported in reported_by_group.items():
        for name, value in compute_average(results, reported).items():
            print(f"{group}: {name} {value:.4f}")
    kept = {key: value for key, value in results.items() if key != "samples"}
    path = write_result_files(outputs.files_folder, kept, results["samples"])
    print(f"results: {path}")
    if outputs.run is None:
        print(f"in no run's record and on no model card: {outputs.notice}")
        return
    inside = path.is_relative_to(outputs.run.folder)
    records = make_records(
        results,
        outputs.run.model,
        reported_by_group=reported_by_group,
        results_file=str(path.relative_to(outputs.run.folder)) if inside else path.name,
    )
    for written in record_in_run(outputs.run, records):
        print(f"written: {written}")
