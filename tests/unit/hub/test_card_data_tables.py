"""What a model was trained on, and its losses."""

from tests.helpers.model_facts import START, build_facts, rows, write_body


def test_passes_over_a_stream_are_counted_in_files():
    one = {**START, "training_data": START["training_data"][:1]}
    streamed = write_body(build_facts(starts=[one], options={"training.streaming": True}))
    assert ("passes over the data", "0.25, counted in files") in rows(streamed)
