"""The report command: one run or several, while they go on or after, and as pictures."""

import json
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flame_accel.__main__ import main


def make_run(folder: Path, records: Sequence[dict[str, float]] = ()) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text("[training]\nsteps = 2\n")
    if records:
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metrics.jsonl").write_text(text)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "my-run", [{"step": 1, "train/loss": 2.0}])


def test_the_page_is_written_and_its_path_printed(run, capsys):
    main(["report", str(run)])
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<title>my-run</title>" in page and ">Loss</h3>" in page


def test_a_run_that_has_not_made_a_step_has_a_page(tmp_path):
    main(["report", str(make_run(tmp_path / "empty"))])
    assert "No measurements are recorded yet." in (tmp_path / "empty/report.html").read_text()


def test_several_runs_are_on_one_page_in_the_current_folder(run, tmp_path, monkeypatch, capsys):
    other = make_run(tmp_path / "other", [{"step": 1, "train/loss": 3.0}])
    monkeypatch.chdir(tmp_path)
    main(["report", str(run), str(other), "--title", "Two of them"])
    assert capsys.readouterr().out == "report.html\n"
    page = Path("report.html").read_text()
    assert "<h1>Two of them</h1>" in page and "side by side: my-run, other" in page
    assert not (run / "report.html").exists()


def test_page_and_pictures_are_written_where_asked_for(run, tmp_path, capsys):
    output, images = tmp_path / "a/page.html", tmp_path / "b"
    main(["report", str(run), "--output", str(output), "--images", str(images)])
    assert output.is_file() and not (run / "report.html").exists()
    assert {path.name for path in images.iterdir()} == {"loss.png", "loss.svg"}
    assert capsys.readouterr().out.split() == [
        str(path) for path in (output, images / "loss.png", images / "loss.svg")
    ]


def test_a_watched_page_follows_its_run_until_that_has_finished(run):
    def reload_seconds() -> str:
        page = (run / "report.html").read_text()
        return re.findall(r'<body data-reload-seconds="(.*)">', page)[0]

    watching = threading.Thread(target=main, args=(["report", str(run), "--watch", "1"],))
    watching.start()
    while not (run / "report.html").exists():
        time.sleep(0.02)
    assert reload_seconds() == "1" and watching.is_alive()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/loss": 1.25}\n')
    (run / "ended.json").write_text('{"reason": "finished", "step": 2}')
    watching.join(timeout=60)
    assert not watching.is_alive()
    page = (run / "report.html").read_text()
    assert "finished, step 2" in page and "<dd>1.2500</dd>" in page and reload_seconds() == ""


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tmp_path}: has no metrics.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_pages_without_a_pause_are_refused(run, seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), f"--watch={seconds}"])
    assert ended.value.code == 2 and "--watch" in capsys.readouterr().err
