"""Pictures: the same bytes for the same values, every curve in its colour, none without values."""

import json
import math
import struct
from pathlib import Path

import pytest

from flame_accel.observe.report import render_loss_png, write_images
from flame_accel.observe.report.chart_spec import LIGHT_COLORS
from flame_accel.observe.report.pictures import PIXELS_OF_PNG, WIDTH

RECORDS = [
    {"step": step, "train/loss": 5.0 / step, "eval/loss": 6.0 / step} for step in range(1, 9)
]


def test_the_loss_is_a_picture_that_depends_on_nothing_but_the_losses():
    picture = render_loss_png(RECORDS)
    assert picture == render_loss_png([each | {"time/step_seconds": 3.0} for each in RECORDS])
    assert picture != render_loss_png([each | {"train/loss": 1.0} for each in RECORDS])
    assert picture != render_loss_png([{**each, "eval/loss": math.nan} for each in RECORDS])
    assert picture is not None and picture.startswith(b"\x89PNG\r\n")
    assert struct.unpack(">I", picture[16:20])[0] > WIDTH * PIXELS_OF_PNG


@pytest.mark.parametrize(
    "records", [[], [{"step": 1}], [{"step": 1, "train/loss": math.nan}]], ids=str
)
def test_without_a_loss_there_is_no_picture(records: list[dict[str, float]]):
    assert render_loss_png(records) is None


def test_one_step_and_a_loss_of_zero_are_drawn():
    assert render_loss_png(RECORDS[:1])
    assert render_loss_png([*RECORDS, {"step": 9, "train/loss": 0.0}])


def test_each_chart_of_some_runs_is_written(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lines = ('{"step": 1, "train/loss": 2.0}', '{"step": 2, "train/loss": 1.0, "a b/c": 1}')
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    written = write_images([tmp_path / "one", tmp_path / "two"], tmp_path / "images")
    names = {path.name for path in written}
    assert names == {"loss.png", "loss.svg", "a-b-c.png", "a-b-c.svg"}
    assert names == {path.name for path in (tmp_path / "images").iterdir()}
    drawn = (tmp_path / "images/loss.svg").read_text()
    for run, color in zip(("one", "two"), LIGHT_COLORS, strict=False):
        assert f">{run}</text>" in drawn and color in drawn


def test_each_metric_has_pictures_of_its_own_whatever_it_is_called(tmp_path: Path):
    keys = ("a.b", "a/b", "eval/", "line\nbreak", 'quote"', "a\\b", "</script>", "x" * 300)
    records = [{"step": step, **dict.fromkeys(keys, 1.0)} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    written = write_images([tmp_path], tmp_path / "images")
    assert len(set(written)) == 2 * len(keys)
    assert all(path.stem and path.stat().st_size for path in written)
