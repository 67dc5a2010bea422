"""Files of a checkpoint that are cut, flipped, removed or replaced; two writers at once."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from flame_accel.checkpoint_files import find_damage
from tests.helpers.checkpoints import undo_checkpoint
from tests.torture.laboratory import INTERVAL, STEPS, TRACEBACK, Laboratory, Outcome

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


def damage_a_file(laboratory: Laboratory, count: int) -> Iterator[Outcome]:
    """One file of the newest checkpoint is damaged: the run says so and uses the one before it.

    Harmless is what leaves the checkpoint's content as it was.
    """
    original = laboratory.folder / "to-damage"
    # the last checkpoint is gone, and the one before it is the newest
    run = laboratory.start(original)
    assert not any(run.wait()), run.printed()
    undo_checkpoint(original / f"checkpoint/step-{STEPS}")
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
        if f"continuing after step {STEPS - INTERVAL}" in printed:
            outcome.what += ", harmless"
        elif "continuing after step" not in printed:
            outcome.problems.append(f"begun anew: {printed[-400:]}")
        elif newest not in printed:
            outcome.problems.append(f"the log does not name {newest}: {printed[-400:]}")

    return laboratory.repeat("damaged file", count, one)


def flip_the_manifest(laboratory: Laboratory, count: int) -> Iterator[Outcome]:
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
        if find_damage(manifest.parent) is not None:
            return
        if json.loads(flipped) == json.loads(content):
            outcome.what += ", harmless"
        else:
            outcome.problems.append("not found")

    return laboratory.repeat("flipped bit of a manifest", count, one)


def start_a_second_writer(laboratory: Laboratory, count: int) -> Iterator[Outcome]:
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
        if codes != [1] and "this run has finished" not in said:
            outcome.problems.append(f"not refused, exit codes {codes}: {said[-400:]}")
        if TRACEBACK in said:
            outcome.problems.append(f"a traceback: {said[-400:]}")
        first.wait()
        laboratory.finish(run_folder, outcome)

    return laboratory.repeat("second writer", count, one)


def change_world_size(laboratory: Laboratory, count: int) -> Iterator[Outcome]:
    """Killed with two ranks and continued with one, or the other way round; the order is the same.

    Losses are means over the same rows, summed in another order: equal to a few units in the last
    place, so that only the steps and that it finishes are compared here.
    """

    def one(run_folder: Path, outcome: Outcome, number: int) -> None:
        ranks = 1 + number % 2
        run = laboratory.start(run_folder, ranks=ranks, **{"training.batch_size": 4 // ranks})
        laboratory.wait_for_step(run, run_folder, 4 + number % 12)
        run.signal_ranks(signal.SIGKILL)
        run.wait()
        rows = {"training.batch_size": 4 // (3 - ranks)}
        other = laboratory.start(run_folder, ranks=3 - ranks, **rows)
        codes = other.wait()
        outcome.what = f"{ranks} to {3 - ranks} ranks"
        if any(codes) or TRACEBACK in other.printed():
            outcome.problems.append(f"exit codes {codes}: {other.printed()[-400:]}")

    return laboratory.repeat("change of the number of processes", count, one)
