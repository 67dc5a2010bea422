"""Progress in the data over all ranks: epochs, skipped documents, padding, too many bad records."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flame_accel.config import UserError
from flame_accel.data.loading.step_batches import ConsumedSkippedBadCounts
from flame_accel.observe import data_progress, reduce_and_check_data_metrics

ACCELERATOR: Any = SimpleNamespace(device=torch.device("cpu"))


def batches(*, skipped: int = 0, bad: int = 0, packing_efficiency: float = 1.0) -> Any:
    """A rank's batches as far as they are read here."""
    return SimpleNamespace(
        max_source_epoch_of_rank=1.5,
        counts_of_rank=ConsumedSkippedBadCounts(10, skipped, bad),
        packing_efficiency_of_rank=packing_efficiency,
        source_tokens_of_rank=[300, 0, 100],
    )


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Two ranks that are in the same place."""
    monkeypatch.setattr(data_progress, "all_reduce_sum_over_dp", lambda _, local: 2 * local)
    monkeypatch.setattr(data_progress, "dp_size", lambda _: 2)
    return 2


def test_without_skipped_documents_and_padding_there_is_only_the_epoch(ranks):
    assert reduce_and_check_data_metrics(ACCELERATOR, batches(), None) == {"epoch": 1.5}


def test_counts_are_summed_and_fractions_averaged_over_ranks(ranks):
    record = reduce_and_check_data_metrics(
        ACCELERATOR, batches(skipped=3, packing_efficiency=0.75), None
    )
    assert record == {
        "epoch": 1.5,
        "data/documents": 20,
        "data/skipped_documents": 6,
        "data/packing_efficiency": 0.75,
    }


def test_bad_records_of_all_ranks_together_end_a_run(ranks):
    bad = batches(bad=3, skipped=3)
    assert reduce_and_check_data_metrics(ACCELERATOR, bad, 6)["data/skipped_documents"] == 6
    with pytest.raises(UserError, match="6"):
        reduce_and_check_data_metrics(ACCELERATOR, bad, 5)


def test_of_several_sources_each_has_its_share_of_the_tokens(ranks):
    names = ["/data/books.jsonl", "org/code", "/more/books.jsonl"]
    record = reduce_and_check_data_metrics(ACCELERATOR, batches(), None, source_names=names)
    assert record == {
        "epoch": 1.5,
        "data/share/books.jsonl": 0.75,
        "data/share/code": 0.0,
        "data/share/books.jsonl 2": 0.25,
    }
    alone = reduce_and_check_data_metrics(ACCELERATOR, batches(), None, source_names=names[:1])
    assert alone == {"epoch": 1.5}
