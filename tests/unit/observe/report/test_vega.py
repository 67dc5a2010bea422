"""Vega: its JavaScript is kept once it has been made, and what fails is told in a sentence."""

from pathlib import Path

import pytest

from flame_accel.observe.report import vega


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLAME_ACCEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def set_program(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(vega, "_PRINT_JAVASCRIPT", program)


def test_the_javascript_is_made_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    set_program(monkeypatch, "print('window.made = 1')")
    first = vega.load_javascript()
    set_program(monkeypatch, "raise SystemExit(3)")
    assert vega.load_javascript() == first and "window.made = 1" in first
    (kept,) = cache.iterdir()
    # a part of a file is no JavaScript
    kept.write_text(first[:9])
    with pytest.raises(vega.VegaError, match=r"does not run on this machine \(exit code 3\)"):
        vega.load_javascript()


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLAME_ACCEL_CACHE", str(tmp_path / "file/cache"))
    set_program(monkeypatch, "print('window.made = 1')")
    assert "window.made = 1" in vega.load_javascript()


def test_a_process_that_aborts_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch):
    set_program(monkeypatch, "import os, sys; print('no memory', file=sys.stderr); os.abort()")
    with pytest.raises(vega.VegaError, match=r"exit code -6\): no memory"):
        vega.load_javascript()
    assert not cache.exists()


def test_a_chart_that_is_none_is_refused():
    with pytest.raises(vega.VegaError, match="Vega refuses the chart"):
        vega.render_picture({"mark": "no mark", "data": {"values": []}}, "svg")
