"""How far a run is in its data, over all ranks, and how much of the data it could not use.

The counts are those of the lanes' cursors, so that a resumed run keeps counting. The cursors are
kept in `data`; losses and timings are measured in `meter`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import torch
from accelerate import Accelerator

from flame_accel.data import StepBatches, too_many_bad_records_error
from flame_accel.parallel import all_reduce_sum_over_dp, dp_size, widest_float_dtype


def reduce_and_check_data_metrics(
    accelerator: Accelerator,
    batches: StepBatches,
    max_bad_records: int | None,
    *,
    source_names: Sequence[str] = (),
) -> dict[str, float]:
    """The record's `epoch`, and `data/...` if there is padding or documents were skipped.

    Of several sources there is also `data/share/NAME`, the share of each in the tokens so far.

    Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        batches: This rank's batches.
        max_bad_records: Largest number of bad records over all ranks; None allows any number.
        source_names: Of all sources, paths among them.

    Raises:
        UserError: All ranks together have skipped more than `max_bad_records` bad records.
    """
    local = (
        batches.max_source_epoch_of_rank,
        *batches.counts_of_rank,
        batches.packing_efficiency_of_rank,
        *(batches.source_tokens_of_rank if len(source_names) > 1 else ()),
    )
    device = accelerator.device
    totals = all_reduce_sum_over_dp(
        accelerator, torch.tensor(local, dtype=widest_float_dtype(device), device=device)
    )
    epoch, consumed, skipped, bad, efficiency, *source_tokens = totals.tolist()
    if max_bad_records is not None and bad > max_bad_records:
        raise too_many_bad_records_error(int(bad), max_bad_records, None)
    record: dict[str, float] = {"epoch": epoch / dp_size(accelerator)}
    if skipped:
        record |= {"data/documents": int(consumed), "data/skipped_documents": int(skipped)}
    if efficiency < dp_size(accelerator):
        record["data/packing_efficiency"] = efficiency / dp_size(accelerator)
    if total := sum(source_tokens):
        names = _short_distinct_names(source_names)
        record |= {
            f"data/share/{name}": tokens / total
            for name, tokens in zip(names, source_tokens, strict=True)
        }
    return record


def _short_distinct_names(names: Sequence[str]) -> list[str]:
    """The last part of each path, with a number where that is another's too."""
    short = [PurePath(name).name or name for name in names]
    seen: Counter[str] = Counter()
    distinct = []
    for name in short:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return distinct
