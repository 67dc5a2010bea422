"""A manifest tells every damage of a checkpoint, and of itself; never with a traceback."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flame_accel import checkpoint_files
from flame_accel.checkpoint_files import FORMAT, find_damage, write_manifest
from flame_accel.config import UserError
from flame_accel.files import describe_files

FACTS = {"step": 5, "tokens": 640, "processes": 2, "versions": {"torch": "2.13.0", "triton": None}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of step 5 with all kinds of files."""
    folder = tmp_path / "step-5"
    (folder / "optimizer").mkdir(parents=True)
    save_file({"a.weight": np.ones((2, 3), np.float32)}, folder / "model.safetensors")
    save_file({"a.weight.step": np.ones(1, np.int64)}, folder / "optimizer/shard-0.safetensors")
    for name in ("config.json", "data.json", "rank-0.json", "rank-1.json"):
        (folder / name).write_text("{}")
    (folder / "state.json").write_text(json.dumps({"step": 5, "tokens": 640}))
    write_manifest(folder, FACTS)
    return folder


def make_manifest_one_of_earlier_versions(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    old = {name: manifest[name] for name in (*FACTS, "files")}
    (folder / "manifest.json").write_text(json.dumps(old, indent=1) + "\n")


def rewrite_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes a manifest of earlier versions, which has no hash of its own."""
    make_manifest_one_of_earlier_versions(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def find_missed_flips(folder: Path, *, flips: int) -> list[int]:
    """The bytes of the manifest of which a flipped bit is not found, of a sample of flips."""
    path = folder / "manifest.json"
    content = path.read_bytes()
    missed = []
    for bit in random.Random(0).sample(range(len(content) * 8), flips):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        if find_damage(folder, step=5) is None:
            missed.append(bit // 8)
    path.write_bytes(content)
    return missed


def test_every_flipped_bit_of_a_manifest_is_detected(checkpoint: Path):
    assert find_damage(checkpoint, step=5) is None
    assert find_missed_flips(checkpoint, flips=3333) == []


def test_a_flipped_bit_of_an_old_manifest_is_detected_or_in_what_nobody_reads(checkpoint: Path):
    make_manifest_one_of_earlier_versions(checkpoint)
    assert find_damage(checkpoint, step=5) is None
    text = (checkpoint / "manifest.json").read_bytes()
    unread = range(text.index(b'"processes"'), text.index(b'"files"'))
    missed = find_missed_flips(checkpoint, flips=1000)
    assert missed and all(byte in unread for byte in missed)


def replace_by_link(path: Path) -> None:
    target = path.rename(path.parents[1] / path.name)
    path.symlink_to(target)


def save_other_tensors(path: Path) -> None:
    """Tensors of the same number of bytes, in a checkpoint that says it was saved with them."""
    tensors = {name: tensor.astype(np.int32) for name, tensor in load_file(path).items()}
    save_file(tensors, path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "more": (lambda f: (f / "model-2.safetensors").touch(), "model-2.safetensors was not saved"),
    "hidden": (lambda f: (f / ".x").touch(), ".x was not saved"),
    "deeper": (lambda f: (f / "optimizer/x").touch(), "optimizer/x was not saved"),
    "link": (lambda f: replace_by_link(f / "data.json"), "data.json is a link"),
    "folder link": (lambda f: (f / "more").symlink_to(f / "optimizer"), "more is a link"),
    "less": (lambda f: (f / "rank-1.json").unlink(), "rank-1.json is missing"),
    "folder": (lambda f: (f / "data.json").unlink() or (f / "data.json").mkdir(), "data.json is"),
    "manifest link": (lambda f: replace_by_link(f / "manifest.json"), "manifest.json is a link"),
    "manifest folder": (
        lambda f: (f / "manifest.json").unlink() or (f / "manifest.json").mkdir(),
        "manifest.json cannot be read: Is a directory",
    ),
    "no files": (lambda f: rewrite_manifest(f, lambda m: m["files"].clear()), "no files"),
    "one file less": (
        lambda f: rewrite_manifest(f, lambda m: m["files"].pop("model.safetensors")),
        "model.safetensors was not saved",
    ),
    "outside": (
        lambda f: rewrite_manifest(
            f, lambda m: m["files"].update(describe_files(f.parent)) or (f.parent / "x").touch()
        ),
        "is missing",
    ),
    "step": (lambda f: rewrite_manifest(f, lambda m: m.update(step=6)), "is that of step 6"),
    "step as text": (lambda f: rewrite_manifest(f, lambda m: m.update(step="5")), "no step"),
    "tokens": (lambda f: rewrite_manifest(f, lambda m: m.update(tokens=1)), "another tokens"),
    "newer": (
        lambda f: rewrite_manifest(f, lambda m: m.update(format=FORMAT + 1)),
        "other contents than were written",
    ),
    "unknown": (lambda f: rewrite_manifest(f, lambda m: m.update(more=1)), "unknown entry, more"),
    "deep": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "is not JSON"),
    "no UTF-8": (lambda f: (f / "manifest.json").write_bytes(b"\xff"), "is not JSON"),
    "null": (lambda f: (f / "manifest.json").write_text("null"), "is no manifest"),
}


def test_a_newer_format_is_no_damage(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    (checkpoint / "manifest.json").unlink()
    monkeypatch.setattr(checkpoint_files, "FORMAT", FORMAT + 1)
    write_manifest(checkpoint, FACTS)
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"format {FORMAT + 1}; this one reads.* {FORMAT}") as error:
        find_damage(checkpoint, step=5)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damage_is_told_in_a_sentence(checkpoint: Path, case: str):
    damage, message = DAMAGES[case]
    damage(checkpoint)
    assert message in (find_damage(checkpoint, step=5) or "")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").write_text("[]"), "config.json is cut, damaged or not JSON"),
        (lambda f: (f / "state.json").write_text('{"step": 6}'), "state.json has another step"),
        (lambda f: (f / "data.json").write_text("{"), "data.json is not JSON"),
        (lambda f: (f / "model.safetensors").write_bytes(b"1234567890"), "model.safetensors is"),
    ],
)
def test_contents_that_say_nothing_are_damage_though_they_are_those_written(
    checkpoint: Path, spoil: Callable[[Path], object], message: str
):
    spoil(checkpoint)
    rewrite_manifest(
        checkpoint, lambda m: m["files"].update(describe_files_without_manifest(checkpoint))
    )
    assert message in (find_damage(checkpoint, step=5) or "")


def test_dtypes_and_shapes_are_those_of_the_manifest(checkpoint: Path, monkeypatch):
    tensors = json.loads((checkpoint / "manifest.json").read_text())["tensors"]
    assert tensors == {
        "model.safetensors": {"a.weight": "F32 [2, 3]"},
        "optimizer/shard-0.safetensors": {"a.weight.step": "I64 [1]"},
    }
    save_other_tensors(checkpoint / "model.safetensors")
    # as after a collision of hashes
    monkeypatch.setattr("flame_accel.files.file_xxh3", lambda path: hashes[path.name])
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    hashes = {Path(name).name: each["xxh3"] for name, each in files.items()}
    assert find_damage(checkpoint, step=5) == (
        "model.safetensors has other tensors than its manifest.json says"
    )


def describe_files_without_manifest(folder: Path) -> dict[str, object]:
    described: dict[str, object] = dict(describe_files(folder))
    described.pop("manifest.json")
    return described


def test_a_checkpoint_may_be_copied_and_laid_out_anew(checkpoint: Path, tmp_path: Path):
    """The hash is of what a manifest says."""
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))
    assert find_damage(copy) is None
