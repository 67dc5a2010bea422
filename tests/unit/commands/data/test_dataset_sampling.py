"""A sample counts every record once, and estimates the whole within its error."""

import numpy as np

from flame_accel.commands.data.dataset_sampling import (
    TokenEstimate,
    count_records,
    estimate_total_tokens,
)
from flame_accel.data.documents import Document, Skipped
from tests.helpers.data_command import FORMS, TEXTS
from tests.helpers.traced_rows import EOS


def test_a_total_is_exact_where_all_was_read_and_else_within_its_error():
    lengths = np.random.default_rng(0).integers(1, 1000, 5000)
    assert estimate_total_tokens(lengths, 5000, 5000) == TokenEstimate(float(lengths.sum()))
    within = 0
    for start in range(50):
        total = estimate_total_tokens(lengths[start::50], 100, 5000)
        within += abs(total.tokens - lengths.sum()) <= total.error
    # two standard errors: 19 of 20
    assert within >= 45
    # records without a document are part of the mean
    assert estimate_total_tokens(np.array([4, 4]), 4, 40).tokens == 80


def test_a_sample_counts_every_record_once():
    records = [
        Document(np.array([1, 2, EOS])),
        Skipped("empty"),
        Skipped("held out"),
        *[Skipped("damaged", f"d.jsonl:{line}", "no JSON") for line in range(9)],
        Document(np.array([EOS])),
    ]
    counts = count_records((record, 5) for record in records)
    assert counts.num_read == len(records) == 13
    assert counts.lengths.tolist() == [3, 1] and counts.num_bytes == 10
    assert (counts.num_empty, counts.num_held_out, counts.num_damaged) == (1, 1, 9)
    assert [skipped.where for skipped in counts.damaged] == [f"d.jsonl:{i}" for i in range(5)]


def test_a_sample_is_an_estimate_and_a_cache_is_exact(run_data_command):
    total = sum(len(text) + 1 for text in TEXTS)
    assert f"tokens     {total:,}\n" in run_data_command(FORMS["lines"])
    estimate = run_data_command(FORMS["lines"], "--documents", "10")
    assert "30, of which 10 were read: 10 documents" in estimate and "tokens     about" in estimate
    assert f"tokens     {total:,}\n" in run_data_command(FORMS["token cache"], "--documents=10")
    assert ", from one record" in run_data_command(FORMS["lines"], "--documents", "1")
    # the end of a stream that was not seen
    stream = run_data_command(FORMS["stream"], "--documents=10")
    assert "the first 10 were read" in stream and "not known" in stream
    assert f"tokens     {total:,}\n" in run_data_command(FORMS["stream"], "--documents=0")
