"""Tokenizes a dataset once, into a token cache that training.dataset can then name.

`data.cache` does the work. Options with a dot are those of the run that will read the cache.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flame_accel.commands.arguments import add_run_options, argparse_integer_at_least
from flame_accel.config import TrainingConfig, UsageError, UserError, dataset_names
from flame_accel.cpu_cores import count_cores_in_affinity_mask

if TYPE_CHECKING:
    from flame_accel.data.cache.cache_progress import CacheProgress
    from flame_accel.data.cache.file_format import Manifest
    from flame_accel.data.sources.table import Table

DATASET_OPTIONS = ("dataset_name", "dataset_split", "data_dir", "data_files", "text_column")
PROGRESS_SECONDS = {True: 0.5, False: 30.0}
"""How often progress is printed: on a terminal (True), and to a file (False)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser; those with a dot are options of a run."""
    add_run_options(parser, "training.dataset", required=True)
    add_run_options(parser, *(f"training.{name}" for name in DATASET_OPTIONS), "training.add_bos")
    for name, minimum in (("max_bad_records", 0), ("max_document_bytes", 1)):
        add_run_options(parser, f"training.{name}", type=argparse_integer_at_least(minimum))
    add_run_options(parser, "model.tokenizer_path", required=True)
    add_run_options(parser, "model.trust_remote_code")
    parser.add_argument("--output", type=Path, required=True, help="folder for the token cache")
    parser.add_argument(
        "--processes",
        type=argparse_integer_at_least(1),
        default=count_cores_in_affinity_mask(),
        help="processes that tokenize; the result does not depend on it (default: all cores)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a token cache in the folder"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the cache, or the rest of it, and print what it holds."""
    # each process keeps one core busy
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    from flame_accel.data.bad_records import SkipPolicy
    from flame_accel.data.cache.cache_writer import CacheOrigin, write_cache_unless_finished
    from flame_accel.data.cache.file_format import read_manifest
    from flame_accel.data.documents import first_is_conversation
    from flame_accel.data.tokens.encoder import Encoder
    from flame_accel.data.tokens.tokenizer import (
        load_tokenizer,
        resolve_add_bos,
        tokenizer_identity,
        vocabulary_size,
    )

    names = ("dataset", *DATASET_OPTIONS, "max_document_bytes")
    training = TrainingConfig(**{name: getattr(arguments, name) for name in names})
    tokenizer = load_tokenizer(str(arguments.tokenizer_path), arguments.trust_remote_code)
    add_bos = resolve_add_bos(tokenizer, arguments.add_bos)
    table = _open_single_table_unless_token_cache(training)
    conversations = first_is_conversation(map(table.__getitem__, range(len(table))))
    origin = CacheOrigin(
        tokenizer_identity=tokenizer_identity(tokenizer, with_chat_template=conversations),
        vocabulary_size=vocabulary_size(tokenizer),
        add_bos=add_bos,
        source=_options_that_decide_records(training),
    )
    with _print_progress_until_signal(arguments.output) as print_progress_or_stop:
        written = write_cache_unless_finished(
            table,
            Encoder(tokenizer, add_bos=add_bos),
            arguments.output,
            origin,
            num_processes=arguments.processes,
            policy=SkipPolicy(arguments.max_bad_records),
            overwrite=arguments.overwrite,
            on_progress=print_progress_or_stop,
        )
    print(_format_summary(arguments.output, read_manifest(arguments.output), written))


def _open_single_table_unless_token_cache(training: TrainingConfig) -> "Table":
    """Open the one dataset that the options name, as a table of records."""
    from flame_accel.data.sources.opening import open_chosen_split
    from flame_accel.data.sources.options import training_dataset_options
    from flame_accel.data.sources.table import Table

    where = f"training.dataset {training.dataset!r}"
    count = len(dataset_names(training))
    if count != 1:
        raise UsageError(
            f"names {count} datasets; a token cache holds one",
            where=where,
            remedy="prepare each into a folder of its own; a run can name several of them",
        )
    table = open_chosen_split(training_dataset_options(training)[0])
    if not isinstance(table, Table):
        raise UserError(
            "is a token cache already",
            where=where,
            remedy="name the data that it was made from, or train from the cache as it is",
        )
    return table


def _options_that_decide_records(training: TrainingConfig) -> dict[str, str | int]:
    """Options that the records depend on, with an absolute path for a path."""
    assert training.dataset is not None
    path = Path(training.dataset)
    options = {
        "dataset": str(path.resolve()) if path.exists() else training.dataset,
        **{name: getattr(training, name) for name in (*DATASET_OPTIONS, "max_document_bytes")},
    }
    return {f"training.{name}": value for name, value in options.items() if value is not None}


@contextmanager
def _print_progress_until_signal(folder: Path) -> Iterator[Callable[["CacheProgress"], None]]:
    """Yield a function that prints progress, and raises after SIGTERM or SIGINT; a second kills."""
    caught: list[int] = []
    on_terminal = sys.stdout.isatty()
    printed_at = time.monotonic()

    def remember_signal_and_let_next_kill(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    def print_progress_or_stop(progress: "CacheProgress") -> None:
        nonlocal printed_at
        if caught:
            raise UserError(
                f"stopped by {signal.Signals(caught[0]).name} after {progress.documents:,} of "
                f"{progress.total_documents:,} documents",
                where=str(folder),
                remedy="run the same command again: it continues after the last complete shard",
                exit_code=128 + caught[0],
            )
        if progress.is_complete or time.monotonic() - printed_at >= PROGRESS_SECONDS[on_terminal]:
            printed_at = time.monotonic()
            end = "\r" if on_terminal and not progress.is_complete else "\n"
            print(f"{progress.describe():<79}", end=end, flush=True)

    before = {
        number: signal.signal(number, remember_signal_and_let_next_kill)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield print_progress_or_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _format_summary(folder: Path, manifest: "Manifest", newly_written: bool) -> str:
    sizes = [file["size"] for shard in manifest["shards"] for file in shard["files"].values()]
    lines = [
        f"{folder}: "
        + ("finished" if newly_written else "already finished, from the same data and tokenizer"),
        f"  {manifest['documents']:,} documents, {manifest['tokens']:,} tokens as "
        f"{manifest['dtype']}, {sum(sizes) / 1e6:,.1f} MB in {len(manifest['shards'])} shards",
    ]
    skipped = {name: manifest[name] for name in ("empty", "damaged") if manifest[name]}
    if skipped:
        counts = " and ".join(f"{count:,} are {name}" for name, count in skipped.items())
        lines.append(f"  of the documents {counts}: they have no tokens")
    lines.append(f"  train from it with --training.dataset {folder}")
    return "\n".join(lines)
