"""How far a run is in its data, over all ranks, and how much of the data it could not use.

The counts are those of the lanes' cursors, so that a resumed run keeps counting. The cursors are
kept in `data`; losses and timings are measured in `meter`.
"""

import torch
from accelerate import Accelerator

from flame_accel.data import StepBatches, too_many_bad_records_error
from flame_accel.parallel import all_reduce_sum_over_dp, dp_size, widest_float_dtype


def reduce_and_check_data_metrics(
    accelerator: Accelerator, batches: StepBatches, max_bad_records: int | None
) -> dict[str, float]:
    """The record's `epoch`, and `data/...` if there is padding or documents were skipped.

    Every rank must call it.

    Args:
        accelerator: The run's accelerator.
        batches: This rank's batches.
        max_bad_records: Largest number of bad records over all ranks; None allows any number.

    Raises:
        UserError: All ranks together have skipped more than `max_bad_records` bad records.
    """
    local = (
        batches.max_source_epoch_of_rank,
        *batches.counts_of_rank,
        batches.packing_efficiency_of_rank,
    )
    device = accelerator.device
    totals = all_reduce_sum_over_dp(
        accelerator, torch.tensor(local, dtype=widest_float_dtype(device), device=device)
    )
    epoch, consumed, skipped, bad, efficiency = totals.tolist()
    if max_bad_records is not None and bad > max_bad_records:
        raise too_many_bad_records_error(int(bad), max_bad_records, None)
    record: dict[str, float] = {"epoch": epoch / dp_size(accelerator)}
    if skipped:
        record |= {"data/documents": int(consumed), "data/skipped_documents": int(skipped)}
    if efficiency < dp_size(accelerator):
        record["data/packing_efficiency"] = efficiency / dp_size(accelerator)
    return record
