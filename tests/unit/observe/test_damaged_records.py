"""A damaged record of a run is passed over, kept aside, and said; nothing good is lost with it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.observe.damaged_records import (
    DamagedRecordError,
    move_aside,
    read_json_object,
    read_record_text,
)
from flame_accel.observe.run_folder import check_run_folder_and_list_changes, read_finished_step
from flame_accel.observe.starts import read_kept_starts
from tests.helpers.checkpoints import list_checkpoints
from tests.helpers.runs import WITHOUT_SAMPLE, read_log, read_losses, read_records

DAMAGES: dict[str, tuple[bytes, str]] = {
    "cut": (b'{"a": ', "is not JSON"),
    "empty": (b"", "is not JSON"),
    "a list": (b"[1]", "is not a JSON object"),
    "no UTF-8": (b'{"a": "\xff"}', "is not text in UTF-8"),
    "nested too deeply": (b'{"a":' * 200_000, "is not JSON .*nested too deeply"),
}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(logging.getLogger("flame_accel"), "propagate", True)
    return caplog


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_has_a_sentence(tmp_path: Path, damage: str):
    content, problem = DAMAGES[damage]
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(DamagedRecordError, match=problem):
        read_json_object(tmp_path / "record.json")


def test_a_file_that_would_fill_the_memory_is_not_read(tmp_path: Path):
    path = tmp_path / "record.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedRecordError, match="is larger than 64 MiB"):
        read_record_text(path)
    with pytest.raises(DamagedRecordError, match="cannot be read: Is a directory"):
        read_record_text(tmp_path)


def test_what_is_moved_aside_gets_the_first_free_number(tmp_path: Path):
    (tmp_path / "a.json.damaged-0").symlink_to("nowhere")
    for number in (1, 2):
        (tmp_path / "a.json").write_text(str(number))
        assert move_aside(tmp_path / "a.json").name == f"a.json.damaged-{number}"
    assert (tmp_path / "a.json.damaged-1").read_text() == "1"


@pytest.mark.parametrize(
    "content",
    ['{"reason": "finished"}', '{"reason": "finished", "step": 1e999}', '{"reason": "fini'],
)
def test_an_end_that_cannot_be_read_is_said(
    tmp_path: Path, content: str, log: pytest.LogCaptureFixture
):
    (tmp_path / "ended.json").write_text(content)
    assert read_finished_step(tmp_path) is None
    assert "the run continues as if it had been killed" in log.text


def test_damaged_starts_are_left_out(tmp_path: Path, log: pytest.LogCaptureFixture):
    good = {"step": 4, "changed_options": [{"option": "a.b", "before": 1, "after": 2}]}
    bad = [{"step": "4"}, 7, {"step": 1, "changed_options": [{"option": "a"}]}, {}]
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({"starts": [bad[0], good, *bad[1:]]}))
    assert read_kept_starts(tmp_path) == [good]
    assert "4 are passed over" in log.text
    path.write_text('{"starts": 5}')
    assert read_kept_starts(tmp_path) == []


def test_an_option_of_another_version_is_passed_over_and_said(
    finished: Path, configured: Callable[..., object]
):
    toml = finished / "config.toml"
    text = toml.read_text().replace("[checkpoint]", "[checkpoint]\nfrom_the_future = 3", 1)
    toml.write_text(text.replace('scheduler = "', 'scheduler = "a_new_', 1) + "\n[novel]\nx = 1\n")
    changes = check_run_folder_and_list_changes(
        finished, configured(**WITHOUT_SAMPLE, **{"job.dump_folder": finished})
    )
    assert "checkpoint.from_the_future: 3 -> unknown to this version, and passed over" in changes
    assert "novel.x: 1 -> unknown to this version, and passed over" in changes
    assert sum("scheduler" in change for change in changes) == 1


def test_a_run_with_all_its_records_damaged_goes_on_and_keeps_them(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    finished: Path,
):
    good, damaged = read_losses(finished), {}
    for name in ("config.toml", "environment.json", "ended.json", "metrics.jsonl"):
        content = (finished / name).read_bytes()
        damaged[name] = content[: len(content) // 2] + b"\xff\n" + content[len(content) // 2 :]
        (finished / name).write_bytes(damaged[name])
    argv = flags(**WITHOUT_SAMPLE, **{"job.dump_folder": finished})
    train_here(argv)
    for name, content in damaged.items():
        assert (finished / f"{name}.damaged-0").read_bytes() == content
        assert f"{name}.damaged-0" in read_log(finished)
    assert list_checkpoints(finished) == ["step-4", "step-8"]
    losses = read_losses(finished)
    assert set(losses) < set(good) and len(losses) >= 6
    assert all(losses[step] == good[step] for step in losses)
    # and now it has finished: no further start changes or says anything
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    train_here(argv)
    assert after == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert read_records(finished)
