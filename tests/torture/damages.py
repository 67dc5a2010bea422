"""Run folders that are not as the run left them: damaged files, wrong names, another owner."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from flame_accel.checkpoint_files import find_damage
from tests.helpers.checkpoints import LOOKALIKES, undo_checkpoint
from tests.torture.laboratory import (
    INTERVAL,
    STEPS,
    TRACEBACK,
    Laboratory,
    Outcome,
    are_close,
    read_result,
)

Damage = Callable[[Laboratory, Path], None]


def _cut(laboratory: Laboratory, file: Path) -> None:
    os.truncate(file, laboratory.random.randrange(file.stat().st_size))


def _flip(laboratory: Laboratory, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[laboratory.random.randrange(len(content))] ^= 1 << laboratory.random.randrange(8)
    file.write_bytes(content)


def _remove(laboratory: Laboratory, file: Path) -> None:
    file.unlink()


def _append(laboratory: Laboratory, file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"\0")


def _empty(laboratory: Laboratory, file: Path) -> None:
    os.truncate(file, 0)


def _replace_by_folder(laboratory: Laboratory, file: Path) -> None:
    file.unlink()
    file.mkdir()


def _replace_by_dead_link(laboratory: Laboratory, file: Path) -> None:
    file.unlink()
    file.symlink_to("/nowhere")


def _replace_by_link_to_older(laboratory: Laboratory, file: Path) -> None:
    """To the same file of the checkpoint before, which another number of steps made."""
    checkpoint = next(parent for parent in file.parents if parent.name.startswith("step-"))
    older = checkpoint.with_name(f"step-{STEPS - 2 * INTERVAL}") / file.relative_to(checkpoint)
    file.unlink()
    file.symlink_to(older)


def _add_file_beside(laboratory: Laboratory, file: Path) -> None:
    (file.parent / f"model-{file.name}.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")


DAMAGES: tuple[Damage, ...] = (
    _cut,
    _flip,
    _remove,
    _append,
    _empty,
    _replace_by_folder,
    _replace_by_dead_link,
    _replace_by_link_to_older,
    _add_file_beside,
)


def _make_run_to_damage(laboratory: Laboratory, name: str) -> Path:
    """A run whose last checkpoint is gone, so that the one before it is the newest."""
    original = laboratory.folder / name
    run = laboratory.start(original)
    assert not any(run.wait()), run.printed()
    undo_checkpoint(original / f"checkpoint/step-{STEPS}")
    return original


def damage_a_file(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """One file of the newest checkpoint is damaged: the run says so and uses the one before it.

    Harmless is what leaves the checkpoint's content as it was.
    """
    original = _make_run_to_damage(laboratory, "to-damage")
    newest = f"checkpoint/step-{STEPS - INTERVAL}"
    names = sorted(
        path.relative_to(original) for path in (original / newest).rglob("*") if path.is_file()
    )

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        shutil.copytree(original, run_folder, symlinks=True)
        damage, name = DAMAGES[number % len(DAMAGES)], names[number // len(DAMAGES) % len(names)]
        outcome.what = f"{damage.__name__.strip('_')} {name.relative_to(newest)}"
        damage(laboratory, run_folder / name)
        printed = laboratory.finish(run_folder, outcome)
        outcome.kind = "found"
        if f"continuing after step {STEPS - INTERVAL}" in printed:
            outcome.kind = "harmless"
        elif "continuing after step" not in printed:
            outcome.problems.append(f"begun anew: {printed[-400:]}")
        elif newest not in printed:
            outcome.problems.append(f"the log does not name {newest}: {printed[-400:]}")

    return laboratory.repeat(numbers, one)


def flip_the_manifest(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """One bit of a manifest: found, and said in a sentence, without a start of the run."""
    original = laboratory.folder / "to-flip"
    run = laboratory.start(original)
    assert not any(run.wait()), run.printed()
    manifest = original / f"checkpoint/step-{STEPS}/manifest.json"
    content = manifest.read_bytes()

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        flipped = bytearray(content)
        place, bit = laboratory.random.randrange(len(content)), laboratory.random.randrange(8)
        flipped[place] ^= 1 << bit
        outcome.what = f"bit {bit} of byte {place}"
        manifest.write_bytes(flipped)
        outcome.kind = "found"
        if find_damage(manifest.parent) is not None:
            return
        if json.loads(flipped) == json.loads(content):
            outcome.kind = "harmless"
        else:
            outcome.problems.append("not found")

    return laboratory.repeat(numbers, one)


def start_a_second_writer(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """A second run in the folder of one that goes on, which is not disturbed."""

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        first = laboratory.start(run_folder)
        if not laboratory.wait_for_step(first, run_folder, 1 + number % 12):
            outcome.problems.append(f"the first run ended: {first.printed()[-400:]}")
        second = laboratory.forker.start(
            laboratory.options(run_folder), run_folder.with_suffix(".second")
        )
        outcome.what = f"after step {1 + number % 12}"
        # the first one may have finished before the second one looks
        codes, said = second.wait(), second.printed()
        outcome.kind = "refused" if codes == [1] else "after the first one's end"
        if codes != [1] and "this run has finished" not in said:
            outcome.problems.append(f"not refused, exit codes {codes}: {said[-400:]}")
        if TRACEBACK in said:
            outcome.problems.append(f"a traceback: {said[-400:]}")
        first.wait()
        laboratory.finish(run_folder, outcome)

    return laboratory.repeat(numbers, one)


def change_world_size(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """Killed with two ranks and continued with one, or the other way round.

    Losses are means over the same rows, summed in another order: equal up to rounding.
    """
    expected = dict(laboratory.expected()[0].losses)

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        ranks = 1 + number % 2
        run = laboratory.start(run_folder, ranks=ranks, **{"training.batch_size": 4 // ranks})
        laboratory.wait_for_step(run, run_folder, 4 + number % 12)
        run.signal_ranks(signal.SIGKILL)
        run.wait()
        outcome.kind = f"from {ranks} to {3 - ranks}"
        outcome.what = f"after step {4 + number % 12}"
        rows = {"training.batch_size": 4 // (3 - ranks)}
        other = laboratory.start(run_folder, ranks=3 - ranks, **rows)
        codes = other.wait()
        if any(codes) or TRACEBACK in other.printed():
            outcome.problems.append(f"exit codes {codes}: {other.printed()[-400:]}")
            return
        losses = read_result(run_folder).losses
        if not are_close(losses, list(expected.items())):
            outcome.problems.append(f"other losses than those of one process: {losses}")

    return laboratory.repeat(numbers, one)


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda place: place.mkdir(),
    "a file": lambda place: place.write_text("not the run's"),
    "a link to nowhere": lambda place: place.symlink_to("/nowhere/at-all"),
}
PLACES = {
    "hf": ("a file", "a link to nowhere"),
    "checkpoint": ("a file", "a link to nowhere"),
    **dict.fromkeys(
        ("metrics.jsonl", "report.html", "log.txt", "config.toml", "environment.json"),
        ("a folder", "a link to nowhere"),
    ),
}
"""Where a run writes, and what may stand there instead."""


def put_wrong_names(laboratory: Laboratory, numbers: Iterable[int]) -> Iterator[Outcome]:
    """Folders that only look like checkpoints, and what stands where the run wants to write.

    The first are passed over by name and kept; the second are told before the run, which then
    changes nothing.
    """
    original = _make_run_to_damage(laboratory, "to-confuse")
    cases: list[tuple[str, str | None]] = [(name, None) for name in LOOKALIKES]
    cases += [(name, obstacle) for name, obstacles in PLACES.items() for obstacle in obstacles]
    random.Random(laboratory.seed).shuffle(cases)

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        shutil.copytree(original, run_folder)
        name, obstacle = cases[number % len(cases)]
        outcome.what = f"{name} is {obstacle or 'there'}"
        outcome.kind = "in the way" if obstacle else "like checkpoints"
        if obstacle is None:
            checkpoints = run_folder / "checkpoint"
            LOOKALIKES[name](checkpoints, checkpoints / f"step-{STEPS - INTERVAL}")
            printed = laboratory.finish(run_folder, outcome)
            if name not in printed or not os.path.lexists(checkpoints / name):
                outcome.problems.append(f"not named, or deleted: {printed[-400:]}")
            return
        place, kept = run_folder / name, run_folder.with_suffix(".kept")
        place.rename(kept)
        OBSTACLES[obstacle](place)
        before = _contents(run_folder)
        run = laboratory.start(run_folder)
        codes = run.wait()
        if codes != [1] or name not in run.printed() or TRACEBACK in run.printed():
            outcome.problems.append(f"exit codes {codes}: {run.printed()[-400:]}")
        if _contents(run_folder) != before:
            outcome.problems.append("the refused start changed something")
        place.rmdir() if obstacle == "a folder" else place.unlink()
        kept.rename(place)
        laboratory.finish(run_folder, outcome)

    return laboratory.repeat(numbers, one)


def _contents(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: contents of files, targets of links, None for folders."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }
