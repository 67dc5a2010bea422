"""The report command: writes the page of a run folder, also in the middle of a run."""

import pytest

from flame_accel.__main__ import main


def test_the_page_is_written_and_its_path_printed(tmp_path, capsys):
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    main(["report", str(folder)])
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<title>my-run</title>" in page and "train/loss" in page


def test_a_folder_without_records_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tmp_path}: has no metrics.jsonl" in capsys.readouterr().err
