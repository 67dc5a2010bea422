"""What a finished run shows: the sample is in its log, its records and its report, or in none."""

import re

import pytest

from flame_accel.observe.evaluations_file import read_evaluations
from tests.helpers.runs import SHORT_RUN, read_log


@pytest.mark.parametrize("length", [0, 4])
def test_the_sample_is_logged_and_reported_if_there_is_one(train_here, flags, tmp_path, length):
    options = {"evaluation.sample_tokens": length, "job.description": "A title"}
    options["evaluation.prompt"] = "document"
    train_here(flags(**{**SHORT_RUN, **options}))
    page = (tmp_path / "run/report.html").read_text()
    assert "<h1>A title · run</h1>" in page
    # of the page that the run itself leaves
    assert re.search(r'class="status">\s*finished, step 2\s*<', page)
    assert ("exported model, step 2</figcaption>" in page) == bool(length)
    assert ("sample of the exported model" in read_log(tmp_path / "run")) == bool(length)
    recorded = [each.samples for each in read_evaluations(tmp_path / "run")]
    assert len(recorded) == bool(length)
    for (sample,) in recorded:
        assert sample["prompt"] == "document" and sample["text"]
