"""Tokenises a dataset once, into a folder that training.dataset may name from then on.

The work is in `data.cache`. Options with a dot are those of the run that will read it.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flame_accel.config import TrainingConfig, UserError, dataset_names

if TYPE_CHECKING:
    from flame_accel.data.cache.writer import Progress
    from flame_accel.data.sources.table import Table

DATASET_OPTIONS = ("dataset_name", "dataset_split", "data_dir", "data_files", "text_column")
SECONDS_PER_LINE = {True: 0.5, False: 30.0}
"""How often progress is shown, where someone watches and in a log file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments; those with a dot are the options of a run."""
    defaults = TrainingConfig()
    parser.add_argument("--training.dataset", dest="dataset", required=True, help="as of a run")
    for name in DATASET_OPTIONS:
        parser.add_argument(f"--training.{name}", dest=name, help="as of a run")
    parser.add_argument(
        "--training.add_bos",
        dest="add_bos",
        choices=("auto", "always", "never"),
        default=defaults.add_bos,
        help="as of a run",
    )
    for name, least in (("max_bad_records", 0), ("max_document_bytes", 1)):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--training.{name}",
            dest=name,
            type=_at_least(least),
            default=default,
            help="as of a run",
        )
    parser.add_argument(
        "--model.tokenizer_path", dest="tokenizer_path", required=True, help="as of a run"
    )
    parser.add_argument(
        "--model.trust_remote_code",
        dest="trust_remote_code",
        action="store_true",
        help="as of a run",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the token cache")
    parser.add_argument(
        "--processes",
        type=_at_least(1),
        default=_num_cores(),
        help="that tokenise; the result is the same for any number (default: all cores)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the token cache that is in the folder"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the cache, or what is missing of it, and says what is in it."""
    # each process keeps one core busy
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    from flame_accel.data.bad_records import SkipPolicy
    from flame_accel.data.cache.layout import read_manifest
    from flame_accel.data.cache.writer import Recipe, write_cache
    from flame_accel.data.documents import Skipped
    from flame_accel.data.tokens.encoder import Encoder
    from flame_accel.data.tokens.tokenizer import (
        load_tokenizer,
        resolve_add_bos,
        tokenizer_identity,
        vocabulary_size,
    )

    options = {name: getattr(arguments, name) for name in ("dataset", *DATASET_OPTIONS)}
    tokenizer = load_tokenizer(arguments.tokenizer_path, arguments.trust_remote_code)
    add_bos = resolve_add_bos(tokenizer, arguments.add_bos)
    table = _open_table(options, arguments.max_document_bytes)
    records = map(table.__getitem__, range(len(table)))
    first = next((record for record in records if not isinstance(record, Skipped)), "")
    recipe = Recipe(
        tokenizer_identity=tokenizer_identity(tokenizer, conversations=not isinstance(first, str)),
        vocabulary_size=vocabulary_size(tokenizer),
        add_bos=add_bos,
        source=_describe_source(options, arguments.max_document_bytes),
    )
    with _shown(arguments.output) as report:
        written = write_cache(
            table,
            Encoder(tokenizer, add_bos=add_bos),
            arguments.output,
            recipe,
            processes=arguments.processes,
            policy=SkipPolicy(arguments.max_bad_records),
            overwrite=arguments.overwrite,
            report=report,
        )
    print(_describe_cache(arguments.output, read_manifest(arguments.output), written))


def _open_table(options: Mapping[str, Any], max_document_bytes: int) -> "Table":
    """The one dataset that the options name, by index."""
    from flame_accel.data.sources.opening import open_source
    from flame_accel.data.sources.options import training_dataset_options
    from flame_accel.data.sources.table import Table

    training = TrainingConfig(**options, max_document_bytes=max_document_bytes)
    where = f"training.dataset {options['dataset']!r}"
    count = len(dataset_names(training))
    if count > 1:
        raise UserError(
            f"names {count} datasets; a token cache holds one",
            where=where,
            remedy="prepare each into a folder of its own; a run may name several of these",
            exit_code=2,
        )
    table = open_source(training_dataset_options(training)[0])
    if not isinstance(table, Table):
        raise UserError(
            "is a token cache already",
            where=where,
            remedy="name the data that it was made from, or train from it as it is",
        )
    return table


def _describe_source(options: Mapping[str, Any], max_document_bytes: int) -> dict[str, Any]:
    """What the records depend on, by the names of the options; a path however it is written."""
    path = Path(options["dataset"])
    if path.exists():
        options = {**options, "dataset": str(path.resolve())}
    given = {f"training.{name}": value for name, value in options.items() if value is not None}
    return {**given, "training.max_document_bytes": max_document_bytes}


@contextmanager
def _shown(folder: Path) -> Iterator[Callable[["Progress"], None]]:
    """What shows progress, and stops at the first SIGTERM or SIGINT; a second one kills."""
    caught: list[int] = []
    watched = sys.stdout.isatty()
    shown_at = time.monotonic()

    def catch(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    def report(progress: "Progress") -> None:
        nonlocal shown_at
        if caught:
            raise UserError(
                f"stopped by {signal.Signals(caught[0]).name} after {progress.documents:,} of "
                f"{progress.total:,} documents",
                where=str(folder),
                remedy="run the same command again: it goes on behind the last shard that is whole",
                exit_code=128 + caught[0],
            )
        done = progress.documents == progress.total
        if done or time.monotonic() - shown_at >= SECONDS_PER_LINE[watched]:
            shown_at = time.monotonic()
            end = "\r" if watched and not done else "\n"
            print(f"{_describe_progress(progress):<79}", end=end, flush=True)

    before = {number: signal.signal(number, catch) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield report
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe_progress(progress: "Progress") -> str:
    made = progress.documents - progress.kept
    left = progress.seconds / made * (progress.total - progress.documents)
    minutes, seconds = divmod(round(left), 60)
    return (
        f"{progress.documents / progress.total:6.1%}  {progress.documents:,} documents  "
        f"{progress.tokens:,} tokens  {progress.tokens / progress.seconds:,.0f} tok/s  "
        f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"
    )


def _describe_cache(folder: Path, manifest: dict[str, Any], written: bool) -> str:
    sizes = [file["size"] for shard in manifest["shards"] for file in shard["files"].values()]
    lines = [
        f"{folder}: "
        + ("finished" if written else "was finished already, from the same data and tokenizer"),
        f"  {manifest['documents']:,} documents, {manifest['tokens']:,} tokens as "
        f"{manifest['dtype']}, {sum(sizes) / 1e6:,.1f} MB in {len(manifest['shards'])} shards",
    ]
    passed_over = {name: manifest[name] for name in ("empty", "damaged") if manifest[name]}
    if passed_over:
        said = " and ".join(f"{count:,} are {name}" for name, count in passed_over.items())
        lines.append(f"  of the documents {said}: they have no tokens")
    lines.append(f"  train from it with --training.dataset {folder}")
    return "\n".join(lines)


def _at_least(least: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from {least} on")
        return int(word)

    return parse


def _num_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
