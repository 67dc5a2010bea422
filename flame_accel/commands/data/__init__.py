"""Shows what a run would see: its documents, packed rows, shares of datasets and epochs.

It takes the options of a run; neither a model nor a device is needed. Figures are made in
`data.summary` and drawn in `observe`.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flame_accel.config import Config, ConfigError, UserError, parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from flame_accel.commands.data.figures import Packed
    from flame_accel.commands.data.samples import Look
    from flame_accel.data.bad_records import SkipPolicy
    from flame_accel.data.documents import Skipped
    from flame_accel.data.from_options import RunData
    from flame_accel.data.loading.workers import Stream

LINES = textwrap.TextWrapper(
    width=78, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
)
NO_MODEL = "not-needed"
"""Stands for the model, which a run needs and its data does not."""
MEASURED_ROWS, MEASURED_TOKENS, ROWS_OF_LANE = 128, 2**21, 32
"""How documents fill rows is told by so many rows, fewer where they are long, of some lanes, of
each as many as best fit packs together."""
REPEATS = 4
"""Up to so many epochs are nearly as good as new data (Muennighoff et al., "Scaling
Data-Constrained Language Models", 2023) ..."""
REPEATED = f"after {REPEATS} times tokens teach less and less"
"""... and what is said of more."""
PICTURE = "document_lengths.png"
PACKINGS = {False: "sequential", True: "best_fit"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's own arguments; all others are the options of a run."""
    parser.epilog = "All other arguments are the options of a run, which `bash train.sh -h` prints."
    parser.set_defaults(run_options=[])
    parser.add_argument("--rows", type=_at_least(0), default=3, help="rows of step 1 to show (3)")
    parser.add_argument(
        "--documents",
        type=_at_least(0),
        default=2000,
        help="records of each dataset to read for the statistics: evenly spread ones, of a stream "
        "the first; 0 reads all (2000)",
    )
    parser.add_argument(
        "--ranks", type=_at_least(1), default=1, help="processes that the run would have (1)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"draw the lengths into DIR/{PICTURE}"
    )


def run(arguments: argparse.Namespace) -> None:
    """Reads some documents and packs some rows, and says what is found."""
    config = parse_options(arguments.run_options)

    from transformers.utils import logging

    from flame_accel.commands.data.figures_text import draw_dataset
    from flame_accel.commands.data.samples import look_at
    from flame_accel.data.from_options import build_stream, open_data
    from flame_accel.data.tokens.tokenizer import load_tokenizer

    logging.set_verbosity_error()
    training = config.training
    tokenizer = load_tokenizer(_tokenizer_name(config), config.model.trust_remote_code)
    data = open_data(training, config.evaluation, tokenizer)
    num_lanes = training.batch_size * training.gradient_accumulation_steps * arguments.ranks
    show("run", describe_run(config, data, num_lanes, arguments.ranks))
    looks = []
    for label, dataset in zip(_labels(data), data.training, strict=True):
        looks.append(look_at(dataset, arguments.documents))
        show(f"dataset {label}", draw_dataset(dataset, looks[-1], _limits(config)))
    if arguments.output is not None:
        draw_picture(arguments.output / PICTURE, config, data, looks)
    stream = build_stream(training, data, num_lanes=num_lanes)
    for source in stream.sources:
        source.check_lanes(num_lanes)
    show_rows(config, data, looks, stream, arguments.rows)


def parse_options(argv: Sequence[str]) -> Config:
    """The options of a run; a model may be left out.

    Raises:
        ConfigError: With everything that is wrong.
    """
    try:
        return parse(argv)
    except ConfigError as error:
        # a problem without a value: none was given
        if not any(p.where == "--model.config" and p.value is None for p in error.problems):
            raise
    return parse([*argv, f"--model.config={NO_MODEL}"])


def describe_run(config: Config, data: "RunData", num_lanes: int, ranks: int) -> Iterator[str]:
    """Steps, tokenizer, packing and evaluation, a line each."""
    from flame_accel.data.tokens.tokenizer import vocabulary_size

    training, tokenizer = config.training, data.tokenizer
    yield (
        f"{training.steps:,} steps of {num_lanes:,} rows (batch_size {training.batch_size} x "
        f"{ranks} ranks x {training.gradient_accumulation_steps} micro-batches) of "
        f"{training.seq_len:,} tokens"
    )
    start = f"start with {tokenizer.bos_token} ({tokenizer.bos_token_id})" if data.add_bos else ""
    yield (
        f"tokenizer {_tokenizer_name(config)}, {vocabulary_size(tokenizer):,} ids; documents "
        f"{start or 'have no bos'} and end with {tokenizer.eos_token} ({tokenizer.eos_token_id})"
    )
    if training.varlen:
        longest = training.context_len or training.seq_len
        yield f"{training.packing} packing, documents kept apart and cut at {longest:,} tokens"
    else:
        yield "documents follow each other in rows, without varlen"
    if data.evaluation is not None:
        yield f"evaluation on {data.evaluation}"


def draw_picture(path: Path, config: Config, data: "RunData", looks: Sequence["Look"]) -> None:
    """Draws the lengths of documents, where any were found, and says where."""
    from flame_accel.commands.data.figures_text import write_picture

    lengths = {
        name: look.sample.lengths
        for name, look in zip(_labels(data), looks, strict=True)
        if len(look.sample.lengths)
    }
    if lengths:
        write_picture(path, lengths, _limits(config))
        show("picture", [str(path)])


def show_rows(
    config: Config, data: "RunData", looks: Sequence["Look"], stream: "Stream", num_rows: int
) -> None:
    """Packs rows and shows how they are filled, what the run takes of each dataset, and some."""
    from flame_accel.commands.data.figures import plan_use
    from flame_accel.commands.data.figures_text import draw_mixture, draw_packing
    from flame_accel.commands.data.rows_text import Names, draw_rows
    from flame_accel.commands.data.tracing import trace
    from flame_accel.data.bad_records import SkipPolicy
    from flame_accel.data.from_options import special_token_ids

    met: list[Skipped] = []
    policy = stream.policy
    # records that a run stops at are told of below
    stream = replace(stream, policy=SkipPolicy(sys.maxsize))
    packed = {PACKINGS[stream.packing.best_fit]: _measure(stream, met)}
    if stream.packing.varlen:
        other = replace(stream.packing, best_fit=not stream.packing.best_fit)
        packed[PACKINGS[other.best_fit]] = _measure(replace(stream, packing=other), met)
    show("packing", draw_packing(packed))

    labels = _labels(data)
    places = config.training.steps * stream.num_lanes * config.training.seq_len
    chosen, in_order = packed[PACKINGS[stream.packing.best_fit]], packed[PACKINGS[False]]
    uses = plan_use(data.shares, [look.total for look in looks], chosen, places)
    show("tokens of the run", draw_mixture(labels, uses, in_order.tokens_of_sources, places))

    rows = trace(stream, range(min(num_rows, stream.num_lanes)), 1, met.append)
    ids = special_token_ids(data.tokenizer)
    assert ids["eos_token_id"] is not None
    bos = ids["bos_token_id"] if data.add_bos else None
    names = Names(labels, partial(_decode, data.tokenizer), bos, ids["eos_token_id"])
    if rows:
        show(f"rows of step 1, {len(rows)} of {stream.num_lanes}", draw_rows(rows, names))
    for label, use in zip(labels, uses, strict=True):
        if use.epochs is not None and use.epochs > REPEATS:
            show("warning", [f"{label} is read {use.epochs:.1f} times: {REPEATED}"])
    show_damaged([skipped for look in looks for skipped in look.sample.damaged] + met, policy)


def show_damaged(skipped: Iterable["Skipped"], policy: "SkipPolicy") -> None:
    """Where damaged records are, and what a run does about them."""
    from flame_accel.commands.data.samples import KEPT_RECORDS

    damaged = (record for record in skipped if record.why == "damaged")
    places = dict.fromkeys(f"{record.where}: {record.what}" for record in damaged)
    if not places:
        return
    if policy.max_bad:
        rule = f"a run passes over up to {policy.max_bad:,} bad records, then it stops"
    else:
        rule = "a run stops at the first one; --training.max_bad_records N passes over up to N"
    show("warning: damaged records", [*list(places)[:KEPT_RECORDS], rule])


def show(title: str, lines: Iterable[str]) -> None:
    """Prints a section; what is longer than a line is wrapped, but neither paths nor names."""
    print(f"\n{title}")
    for line in lines:
        for part in LINES.wrap(line) if len(line) > LINES.width else [line]:
            print(f"  {part}")


def _measure(stream: "Stream", met: list["Skipped"]) -> "Packed":
    """How documents fill rows, by some rows of some lanes."""
    from flame_accel.commands.data.figures import describe_packing
    from flame_accel.commands.data.samples import spread_evenly
    from flame_accel.commands.data.tracing import trace

    few = max(ROWS_OF_LANE, MEASURED_TOKENS // stream.packing.seq_len)
    num_rows = min(MEASURED_ROWS, few)
    lanes = spread_evenly(stream.num_lanes, num_rows // ROWS_OF_LANE)
    rows = trace(stream, lanes, -(-num_rows // len(lanes)), met.append)
    return describe_packing(rows, len(stream.sources))


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _tokenizer_name(config: Config) -> str:
    name = config.model.tokenizer_path or str(config.model.config)
    if name == NO_MODEL:
        raise UserError(
            "is required where no model is named",
            where="--model.tokenizer_path",
            remedy="name a tokenizer, or the model with --model.config",
            exit_code=2,
        )
    return name


def _labels(data: "RunData") -> list[str]:
    """What to call the datasets; one may be there twice."""
    names = [dataset.records.name for dataset in data.training]
    return names if len(names) == 1 else [f"{i}. {name}" for i, name in enumerate(names, 1)]


def _limits(config: Config) -> dict[str, int]:
    """Lengths in tokens at which documents are cut."""
    training = config.training
    limits = {"a row": training.seq_len}
    if training.varlen and training.context_len not in (None, training.seq_len):
        limits["a segment"] = training.context_len
    return limits


def _at_least(least: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from {least} on")
        return int(word)

    return parse
