"""The report: one page that needs nothing else, with the title that was given."""

import json
import math

import pytest

from flame_accel.observe.metrics_file import MetricsFile, read_records
from flame_accel.observe.report import select_finite_points, write_report
from tests.helpers.runs import SHORT_RUN


def test_the_report_is_one_page_that_needs_nothing_else(tmp_path):
    records = [{"step": i, "train/loss": 3 / i, "optimizer/lr": 0.1} for i in range(1, 9)]
    records[3]["train/loss"] = "nan"
    records[7]["eval/loss"] = 0.4
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(text)
    page = write_report(tmp_path, title="<b>run", sample="a < b").read_text()
    assert page.count("<svg") == 2
    assert page.count("<polyline") == 3
    assert "<b>" not in page and "a &lt; b" in page
    assert "http" not in page and "<script" not in page
    assert len(select_finite_points(read_records(tmp_path / "metrics.jsonl"), "train/loss")) == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_that_ends_with_a_value_that_is_not_finite_gets_its_report(tmp_path, value):
    MetricsFile(tmp_path / "metrics.jsonl").append({"step": 1, "train/loss": 2.5})
    MetricsFile(tmp_path / "metrics.jsonl").append({"step": 2, "train/loss": value})
    page = write_report(tmp_path, title="run").read_text()
    assert f"<td>train/loss</td><td>{value}</td>" in page
    assert "<td>step</td><td>2</td>" in page


@pytest.mark.covers_option("job.description")
def test_description_titles_the_report(train_here, flags, tmp_path):
    train_here(flags(**SHORT_RUN, **{"job.description": "a <small> run"}))
    assert "<title>a &lt;small&gt; run</title>" in (tmp_path / "run/report.html").read_text()
    train_here(flags(**SHORT_RUN, **{"job.dump_folder": tmp_path / "nameless"}))
    assert "<title>nameless</title>" in (tmp_path / "nameless/report.html").read_text()
