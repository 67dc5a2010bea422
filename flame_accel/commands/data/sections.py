"""Prints the sections of the `data` command, from the run to warnings about damaged records."""

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from flame_accel.commands.data.dataset_sampling import (
    MAX_NAMED_RECORDS,
    DatasetSample,
)
from flame_accel.commands.data.mixture_statistics import (
    compute_dataset_uses,
    format_mixture_table,
)
from flame_accel.commands.data.packing_statistics import (
    PackingStatistics,
    compute_packing_statistics,
    format_packing_table,
)
from flame_accel.config import Config
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.documents import Skipped
from flame_accel.data.even_sampling import evenly_spread_indices
from flame_accel.data.from_options import RunData
from flame_accel.data.lanes.lane import Lanes
from flame_accel.data.row_formatting import RowVocabulary, format_rows
from flame_accel.data.row_tracing import trace_first_rows
from flame_accel.data.tokens.tokenizer import bos_eos_pad_config_kwargs, vocabulary_size

LINE_WRAPPER = textwrap.TextWrapper(
    width=78, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
)
MAX_MEASURED_ROWS, MAX_MEASURED_TOKENS, ROWS_PER_LANE = 128, 2**21, 32
"""Rows that the packing statistics are measured on, fewer if rows are long; from each of a few
lanes as many as best fit packs together."""
MAX_GOOD_EPOCHS = 4
"""Up to this many passes over data are nearly as good as new data (Muennighoff et al., "Scaling
Data-Constrained Language Models", 2023)."""
SEQUENTIAL, BEST_FIT = "sequential", "best_fit"


def print_section(title: str, lines: Iterable[str]) -> None:
    """Print a title and indented lines; long lines are wrapped, but not inside paths and names."""
    print(f"\n{title}")
    for line in lines:
        for part in LINE_WRAPPER.wrap(line) if len(line) > LINE_WRAPPER.width else [line]:
            print(f"  {part}")


def format_steps_tokenizer_and_packing(
    config: Config, data: RunData, tokenizer_name: str, num_lanes: int, ranks: int
) -> Iterator[str]:
    """Lines with the steps, tokenizer, packing and evaluation of the run."""
    training, tokenizer = config.training, data.tokenizer
    yield (
        f"{training.steps:,} steps of {num_lanes:,} rows (batch_size {training.batch_size} x "
        f"{ranks} ranks x {training.gradient_accumulation_steps} micro-batches) of "
        f"{training.seq_len:,} tokens"
    )
    start = f"start with {tokenizer.bos_token} ({tokenizer.bos_token_id})" if data.add_bos else ""
    yield (
        f"tokenizer {tokenizer_name}, {vocabulary_size(tokenizer):,} ids; documents "
        f"{start or 'have no bos'} and end with {tokenizer.eos_token} ({tokenizer.eos_token_id})"
    )
    if training.varlen:
        longest = training.context_len or training.seq_len
        yield f"{training.packing} packing, documents kept apart and cut at {longest:,} tokens"
    else:
        yield "documents follow each other in rows, without varlen"
    for dataset in data.evaluation.values():
        yield f"evaluation on {dataset}"


def print_packing_mixture_rows_and_warnings(
    config: Config,
    data: RunData,
    samples: Sequence[DatasetSample],
    stream: Lanes,
    num_rows: int,
) -> None:
    """Print how rows are packed, the tokens of each dataset, rows of step 1, and warnings."""
    met: list[Skipped] = []
    policy = stream.policy
    # records that would stop a run are listed at the end
    stream = replace(stream, policy=SkipPolicy(sys.maxsize))
    packings = _measure_packing_and_alternative_if_varlen(stream, met.append)
    print_section("packing", format_packing_table(packings))

    names = dataset_names_numbered_if_several(data)
    positions = config.training.steps * stream.num_lanes * config.training.seq_len
    totals = [sample.total for sample in samples]
    uses = compute_dataset_uses(data.shares, totals, packings[_packing_name(stream)], positions)
    # read in order, the first rows show the shares exactly
    measured = packings[SEQUENTIAL].tokens_of_sources
    print_section("tokens of the run", format_mixture_table(names, uses, measured, positions))

    _print_first_rows(data, names, stream, num_rows, met.append)
    for name, use in zip(names, uses, strict=True):
        if use.epochs is not None and use.epochs > MAX_GOOD_EPOCHS:
            effect = f"beyond {MAX_GOOD_EPOCHS} times, tokens teach less and less"
            print_section("warning", [f"{name} is read {use.epochs:.1f} times: {effect}"])
    damaged = [skipped for sample in samples for skipped in sample.counts.damaged]
    print_damaged_records_warning(damaged + met, policy)


def _print_first_rows(
    data: RunData,
    names: Sequence[str],
    stream: Lanes,
    num_rows: int,
    on_bad_record: Callable[[Skipped], None],
) -> None:
    rows = trace_first_rows(stream, range(min(num_rows, stream.num_lanes)), 1, on_bad_record)
    ids = bos_eos_pad_config_kwargs(data.tokenizer)
    assert ids["eos_token_id"] is not None
    bos = ids["bos_token_id"] if data.add_bos else None
    decode = partial(_decode_tokens, data.tokenizer)
    vocabulary = RowVocabulary(names, decode, bos, ids["eos_token_id"])
    if rows:
        title = f"rows of step 1, {len(rows)} of {stream.num_lanes}"
        print_section(title, format_rows(rows, vocabulary))


def print_damaged_records_warning(skipped: Iterable[Skipped], policy: SkipPolicy) -> None:
    """Print where damaged records are, and what a run does about them."""
    damaged = (record for record in skipped if record.why == "damaged")
    places = dict.fromkeys(f"{record.where}: {record.what}" for record in damaged)
    if not places:
        return
    if policy.max_bad:
        rule = f"a run skips up to {policy.max_bad:,} bad records, then it stops"
    else:
        rule = "a run stops at the first one; --training.max_bad_records N skips up to N"
    print_section("warning: damaged records", [*list(places)[:MAX_NAMED_RECORDS], rule])


def dataset_names_numbered_if_several(data: RunData) -> list[str]:
    """Names of the datasets, numbered if there are several, since a name may occur twice."""
    names = [dataset.name for dataset in data.training]
    return names if len(names) == 1 else [f"{i}. {name}" for i, name in enumerate(names, 1)]


def row_and_segment_cut_lengths(config: Config) -> dict[str, int]:
    """By name, lengths in tokens at which documents are cut."""
    training = config.training
    limits = {"a row": training.seq_len}
    if training.varlen and training.context_len not in (None, training.seq_len):
        limits["a segment"] = training.context_len
    return limits


def _packing_name(stream: Lanes) -> str:
    return BEST_FIT if stream.packing.best_fit else SEQUENTIAL


def _measure_packing_and_alternative_if_varlen(
    stream: Lanes, on_bad_record: Callable[[Skipped], None]
) -> dict[str, PackingStatistics]:
    """Statistics of the stream's packing, and with varlen of the other one, by name."""
    streams = [stream]
    if stream.packing.varlen:
        other = replace(stream.packing, best_fit=not stream.packing.best_fit)
        streams.append(replace(stream, packing=other))
    return {
        _packing_name(one): _measure_packing_of_sample_rows(one, on_bad_record) for one in streams
    }


def _measure_packing_of_sample_rows(
    stream: Lanes, on_bad_record: Callable[[Skipped], None]
) -> PackingStatistics:
    """Statistics of some rows of some lanes."""
    affordable = max(ROWS_PER_LANE, MAX_MEASURED_TOKENS // stream.packing.seq_len)
    num_rows = min(MAX_MEASURED_ROWS, affordable)
    lanes = evenly_spread_indices(stream.num_lanes, num_rows // ROWS_PER_LANE)
    rows = trace_first_rows(stream, lanes, -(-num_rows // len(lanes)), on_bad_record)
    return compute_packing_statistics(rows, len(stream.sources))


def _decode_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
