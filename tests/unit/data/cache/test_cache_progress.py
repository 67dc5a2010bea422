"""What is said about a token cache while it is written."""

from flame_accel.data.cache.cache_progress import CacheProgress


def test_a_line_says_what_is_done_at_what_speed():
    progress = CacheProgress(
        documents=60,
        total_documents=60,
        resumed_documents=20,
        tokens=8_000_000,
        elapsed_seconds=4.0,
    )
    assert progress.is_complete
    line = " ".join(progress.describe().split())
    assert line == "100.0% 60 documents 8,000,000 tokens 2,000,000 tok/s 0:00:00 left"


def test_the_time_left_is_reckoned_without_the_documents_of_earlier_attempts():
    progress = CacheProgress(
        documents=40, total_documents=120, resumed_documents=20, tokens=1, elapsed_seconds=3600.0
    )
    assert not progress.is_complete
    assert progress.describe().endswith("4:00:00 left")
