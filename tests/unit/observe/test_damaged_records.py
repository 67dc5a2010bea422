"""A damaged record of a run is passed over, kept aside, and said; nothing good is lost with it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.observe.damaged_records import (
    DamagedRecordError,
    move_aside,
    read_json_object,
    read_record_text,
)
from tests.helpers.checkpoints import list_checkpoints
from tests.helpers.runs import WITHOUT_SAMPLE, read_log, read_losses, read_records

DAMAGES: dict[str, tuple[bytes, str]] = {
    "cut": (b'{"a": ', "is not JSON"),
    "empty": (b"", "is not JSON"),
    "a list": (b"[1]", "is not a JSON object"),
    "no UTF-8": (b'{"a": "\xff"}', "is not text in UTF-8"),
    "nested too deeply": (b'{"a":' * 200_000, "is not JSON .*nested too deeply"),
}


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
