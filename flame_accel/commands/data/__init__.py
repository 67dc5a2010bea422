"""Shows what a run would read: its documents, packed rows, shares of datasets and epochs.

It takes the options of a run, but needs neither a model nor a device. `sections` prints, in this
order, the run, its datasets (`dataset_sampling`, `document_lengths`), how rows are packed
(`packing_statistics`), the tokens of each dataset (`mixture_statistics`), and some rows as text
(`row_tracing`, `row_formatting`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from flame_accel.commands.arguments import argparse_integer_at_least
from flame_accel.config import Config, ConfigError, UsageError, parse

NO_MODEL = "not/needed"
"""Value of model.config if none is given: the data does not depend on it."""
PICTURE = "document_lengths.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments to its parser; all others are options of a run."""
    parser.epilog = "All other arguments are the options of a run, which `bash train.sh -h` prints."
    parser.set_defaults(run_options=[])
    parser.add_argument(
        "--rows",
        type=argparse_integer_at_least(0),
        default=3,
        help="rows of step 1 to show (default 3)",
    )
    parser.add_argument(
        "--documents",
        type=argparse_integer_at_least(0),
        default=2000,
        help="records of each dataset to read for the statistics: evenly spread ones, or the first "
        "ones of a stream; 0 reads all (default 2000)",
    )
    parser.add_argument(
        "--ranks",
        type=argparse_integer_at_least(1),
        default=1,
        help="processes that the run would have (default 1)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"save a picture of the lengths, DIR/{PICTURE}"
    )


def run(arguments: argparse.Namespace) -> None:
    """Read some documents, pack some rows, and print what was found."""
    config = parse_options_without_required_model(arguments.run_options)

    from transformers.utils import logging

    from flame_accel.commands.data import sections
    from flame_accel.commands.data.dataset_sampling import (
        format_dataset,
        read_even_or_first_records_and_estimate_tokens,
    )
    from flame_accel.commands.data.document_lengths import save_histogram_png
    from flame_accel.data.from_options import build_lanes, open_data
    from flame_accel.data.tokens.tokenizer import load_tokenizer

    logging.set_verbosity_error()
    training = config.training
    tokenizer_name = _require_tokenizer_or_model_name(config)
    tokenizer = load_tokenizer(tokenizer_name, config.model.trust_remote_code)
    data = open_data(training, config.evaluation, tokenizer)
    num_lanes = training.batch_size * training.gradient_accumulation_steps * arguments.ranks
    run_lines = sections.format_steps_tokenizer_and_packing(
        config, data, tokenizer_name, num_lanes, arguments.ranks
    )
    sections.print_section("run", run_lines)
    samples, lengths, limits = [], {}, sections.row_and_segment_cut_lengths(config)
    for label, dataset in zip(
        sections.dataset_names_numbered_if_several(data), data.training, strict=True
    ):
        sample = read_even_or_first_records_and_estimate_tokens(dataset, arguments.documents)
        samples.append(sample)
        sections.print_section(f"dataset {label}", format_dataset(dataset, sample, limits))
        if len(sample.counts.lengths):
            lengths[label] = sample.counts.lengths
    if arguments.output is not None and lengths:
        save_histogram_png(arguments.output / PICTURE, lengths, limits)
        sections.print_section("picture", [str(arguments.output / PICTURE)])
    stream = build_lanes(training, data, num_lanes=num_lanes)
    stream.check_enough_records_if_known()
    sections.print_packing_mixture_rows_and_warnings(config, data, samples, stream, arguments.rows)


def parse_options_without_required_model(argv: Sequence[str]) -> Config:
    """Parse the options of a run, of which the model may be left out.

    Raises:
        ConfigError: with everything that is wrong.
    """
    try:
        return parse(argv)
    except ConfigError as error:
        # a problem without a value: the option was not given
        if not any(p.where == "--model.config" and p.value is None for p in error.problems):
            raise
    return parse([*argv, f"--model.config={NO_MODEL}"])


def _require_tokenizer_or_model_name(config: Config) -> str:
    name = config.model.tokenizer_path or str(config.model.config)
    if name == NO_MODEL:
        raise UsageError(
            "is required if no model is named",
            where="--model.tokenizer_path",
            remedy="name a tokenizer, or the model with --model.config",
        )
    return name
