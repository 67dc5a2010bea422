"""The page: it needs nothing else, stays small, and no text of a run can become part of it."""

import json
import math
import re
from pathlib import Path

import pytest

from flame_accel.observe.evaluations_file import Evaluation, EvaluationsFile
from flame_accel.observe.metrics_file import MetricsFile
from flame_accel.observe.report import vega, write_page, write_report
from flame_accel.observe.report.page import render_page
from flame_accel.observe.report.read_runs import RunRecord
from tests.helpers.runs import SHORT_RUN

HOSTILE = "</script><script>alert(1)</script><!--data--><!--script-->\"'&amp;{{ 7 * 7 }}</pre>"


def data_of(page: str) -> dict:
    """What the script of a page reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_no_text_of_a_run_becomes_markup(tmp_path: Path):
    run = RunRecord(
        name=HOSTILE,
        records=[{"step": 1, f"eval/{HOSTILE}": 1.0, HOSTILE: 2.0}],
        evaluations=[
            Evaluation(1, 1, "set", HOSTILE, {HOSTILE: 1.0}, {"edges": [0, 8], HOSTILE: [1.0]})
        ],
        skipped=[{"step": 1, "reason": HOSTILE}],
        starts=[{"step": 0, "changed_options": []}, {"step": 1, "changed_options": [], "a": 1}],
        options={"job.description": HOSTILE},
        options_text=HOSTILE,
        environment={"device": HOSTILE, "packages": {HOSTILE: HOSTILE}},
        ended={"reason": HOSTILE, "what": HOSTILE},
        problems=[HOSTILE],
    )
    for runs in ([run], [run, RunRecord(name="b", evaluations=run.evaluations)]):
        page = render_page(runs, title=HOSTILE)
        assert "<script>" not in page and "49" not in page.partition("<style>")[0]
        # the data, Vega, and the page's own script
        assert len(re.findall(r"<script", page)) == len(re.findall(r"</script>", page)) == 3
        assert data_of(page)["runs"][0]["name"] == HOSTILE
        assert page.count(vega.load_javascript()) == 1


def test_samples_are_shown_as_they_are(tmp_path: Path):
    samples = [{"prompt": "def ", "text": "</script>f(): <b>"}]
    EvaluationsFile(tmp_path).append(
        Evaluation(5, 9, "set", "code", {"loss": 1.0}, samples=samples)  # type: ignore[arg-type]
    )
    page = write_report(tmp_path, title="run").read_text()
    assert "code, step 5</figcaption>" in page
    assert "<b>def </b>&lt;/script&gt;f(): &lt;b&gt;" in page


def test_the_page_needs_nothing_else():
    page = render_page([RunRecord("a", records=[{"step": 1, "train/loss": 1.0}])], title="run")
    outside = page.replace(vega.load_javascript(), "")
    assert not re.search(r"""(src|href)\s*=|url\(|@import|import\s*\(|fetch\(""", outside)


def test_many_long_runs_make_a_page_below_two_megabytes():
    keys = ["train/loss", "optimizer/grad_norm", "optimizer/lr", "memory/peak_gib", "a", "b", "c"]
    runs = [
        RunRecord(
            name=str(number),
            records=[
                {"step": step, "tokens": step * 1000}
                | {key: math.sin(step * number + n) * 1e-5 for n, key in enumerate(keys)}
                for step in range(1, 4000)
            ],
        )
        for number in range(1, 9)
    ]
    page = render_page(runs, title="long")
    assert len(page.encode()) < 2_000_000
    assert len(data_of(page)["charts"]) == len(keys)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_gap(tmp_path: Path, value: float):
    for record in ({"step": 1, "train/loss": 2.5}, {"step": 2, "train/loss": value}):
        MetricsFile(tmp_path / "metrics.jsonl").append(record)
    (series,) = data_of(write_report(tmp_path, title="run").read_text())["charts"][0]["series"]
    assert (series["y"], series["gaps"]) == ([2.5, None], [2])


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "a-long-secret-token")
    run = RunRecord(
        name="a-long-secret-token",
        records=[{"step": 1, "a-long-secret-token": 1.0}],
        options_text="a-long-secret-token",
    )
    page = render_page([run], title="a-long-secret-token")
    assert "a-long-secret-token" not in page and page.count("[secret]") >= 4


def test_without_vega_the_numbers_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    MetricsFile(tmp_path / "metrics.jsonl").append({"step": 1, "train/loss": 2.5})
    monkeypatch.setattr(vega, "PACKAGE", "a-package-that-nobody-has")
    page = write_report(tmp_path, title="run").read_text()
    assert "The charts are not drawn: the package a-package-that-nobody-has is not" in page
    assert "<dd>2.5000</dd>" in page


def test_a_comparison_names_the_runs_and_what_differs(tmp_path: Path):
    for name, rate in (("first", 1e-3), ("second", 2e-3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(f"[optimizer]\nlr = {rate}\n")
        MetricsFile(tmp_path / name / "metrics.jsonl").append({"step": 1, "train/loss": rate})
    write_page([tmp_path / "first", tmp_path / "second"], tmp_path / "new/page.html")
    page = (tmp_path / "new/page.html").read_text()
    assert "<title>2 runs</title>" in page and "side by side: first, second" in page
    assert re.search(r"optimizer\.lr</th>\s*<td>0\.001</td><td>0\.002</td>", page)
    assert [series["run"] for series in data_of(page)["charts"][0]["series"]] == [0, 1]


def test_a_report_of_copies_says_how_the_run_ended(tmp_path: Path):
    (tmp_path / "copies").mkdir()
    MetricsFile(tmp_path / "copies/metrics.jsonl").append({"step": 1, "train/loss": 2.5})
    (tmp_path / "ended.json").write_text('{"reason": "finished", "step": 1}')
    copies = tmp_path / "copies"
    page = write_report(copies, title="run", end_recorded_in=tmp_path).read_text()
    assert "finished, step 1" in page
    assert "running, step 1" in write_report(copies, title="run").read_text()


@pytest.mark.covers_option("job.description")
def test_description_titles_the_report(train_here, flags, tmp_path):
    train_here(flags(**SHORT_RUN, **{"job.description": "a <small> run"}))
    assert "<title>a &lt;small&gt; run · run</title>" in (tmp_path / "run/report.html").read_text()
    train_here(flags(**SHORT_RUN, **{"job.dump_folder": tmp_path / "nameless"}))
    assert "<title>nameless</title>" in (tmp_path / "nameless/report.html").read_text()
