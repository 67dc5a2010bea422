"""Faults that are planted one at a time, to see whether the suite catches each; `make mutants`.

    python -m tests.torture.mutants            all of them
    python -m tests.torture.mutants fsync      those whose name contains a word

A fault is a change of one place in a copy of the checkout. Only the tests that have to catch it
run, which is the same verdict as the whole suite's if they do. Exit code 1 if one is not caught.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.helpers.runs import ROOT


class Mutant(NamedTuple):
    """A planted fault."""

    name: str
    module: str
    """Path below flame_accel/."""
    old: str
    """Text of one place of the module."""
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest: where it has to be caught."""


MUTANTS = (
    Mutant(
        "prune before the new checkpoint is complete",
        "checkpoint/folder.py",
        "        temporary = self.temporary_path(step)\n        write_manifest",
        "        self.keep_latest_k -= 1\n"
        "        self._delete_all_but_latest_k_unless_in_use(step)\n"
        "        self.keep_latest_k += 1\n"
        "        temporary = self.temporary_path(step)\n        write_manifest",
        ("tests/unit/checkpoint/test_folder.py",),
    ),
    Mutant(
        "no fsync before a file is renamed",
        "files.py",
        "        sync_to_disk(temporary)\n        os.replace(temporary, path)",
        "        os.replace(temporary, path)",
        ("tests/unit/test_files.py",),
    ),
    Mutant(
        "no fsync before a folder is renamed",
        "files.py",
        "    _sync_tree_to_disk(temporary)\n    _rename_or_swap",
        "    _rename_or_swap",
        ("tests/unit/test_files.py",),
    ),
    Mutant(
        "random states not restored",
        "checkpoint/contents.py",
        "lambda: set_all_rng_states(read.rng_states) if read.rng_states is not None else None",
        "lambda: None",
        ("tests/unit/checkpoint/test_contents.py", "tests/laws/test_resume.py"),
    ),
    Mutant(
        "cursors of rank 0 only",
        "checkpoint/snapshot.py",
        "[stream for stream, _ in rank_states]",
        "[rank_states[0][0]]",
        (
            "tests/laws/test_resume.py",
            "tests/laws/test_checkpoints_across_engines.py",
            "-m",
            "not slow",
        ),
    ),
    Mutant(
        "the highest number wins, whatever is in it",
        "checkpoint/folder.py",
        "damage = self._find_damage_or_raise_if_unreadable(folder, step)\n            if damage",
        "damage = None\n            if damage",
        ("tests/unit/checkpoint/test_folder.py", "tests/laws/test_resume.py"),
    ),
    Mutant(
        "an update that is not finite is skipped on one rank only",
        "training/step.py",
        "    found_inf = (~torch.isfinite(grad_norm)).float() * float(skip_non_finite)\n",
        "    found_inf = (~torch.isfinite(grad_norm)).float() * float(skip_non_finite)\n"
        "    found_inf = found_inf * (accelerator.process_index == 1)\n",
        ("tests/unit/training/test_step.py",),
    ),
    Mutant(
        "lock not taken",
        "checkpoint/run_lock.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        ("tests/unit/checkpoint/test_run_lock.py",),
    ),
    Mutant(
        "hashes of files not compared",
        "files.py",
        '        if compare_checksums and file_xxh3(path) != expected["xxh3"]:',
        '        if False and file_xxh3(path) != expected["xxh3"]:',
        ("tests/unit/test_files.py", "tests/laws/test_resume.py"),
    ),
    Mutant(
        "hash of the manifest not compared",
        "checkpoint_files.py",
        '        if content.get("xxh3") != _hash_of_content(content):',
        '        if content.get("xxh3") is None:',
        ("tests/unit/test_checkpoint_files.py",),
    ),
    Mutant(
        "optimizer state not loaded",
        "checkpoint/contents.py",
        "lambda: load_optimizer_state(accelerator, model, optimizer, checkpoint)",
        "lambda: None",
        ("tests/unit/checkpoint/test_contents.py", "tests/laws/test_resume.py"),
    ),
    Mutant(
        "weights that are trained on are written in the background",
        "checkpoint/saver.py",
        "to_cpu=Tensor.cpu if copies is None else copies.begin_copy",
        "to_cpu=Tensor.cpu",
        ("tests/unit/checkpoint/test_saver.py", "-k", "change_no_byte"),
    ),
    Mutant(
        "a signal stops without a save",
        "checkpoint/save_schedule.py",
        "if run_stops or is_best or completed_steps == self.total_steps:",
        "if is_best or completed_steps == self.total_steps:",
        ("tests/laws/test_stops_lose_nothing.py",),
    ),
    Mutant(
        "a launcher that is lost is not noticed",
        "stop_signals.py",
        "            call_when_parent_is_gone(self._stop_without_launcher)\n",
        "            pass\n",
        ("tests/unit/test_stop_signals.py",),
    ),
)


def applied_text(mutant: Mutant) -> str:
    """The module with the fault.

    Raises:
        ValueError: The module has changed so that the fault has no place in it, or several.
    """
    text = (ROOT / "flame_accel" / mutant.module).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its text occurs {text.count(mutant.old)} times")
    return text.replace(mutant.old, mutant.new)


def is_caught(mutant: Mutant, checkout: Path) -> bool:
    """Plants a fault in a copy of the checkout, runs its tests, and removes it again."""
    module = checkout / "flame_accel" / mutant.module
    before = module.read_text()
    module.write_text(applied_text(mutant))
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-n", "0", *mutant.tests],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    module.write_text(before)
    # 1: tests failed; anything else means that they did not run
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    return done.returncode == 1


def main() -> None:
    """The program."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutant for mutant in MUTANTS if word in mutant.name]
    caught = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        checkout = Path(folder) / "checkout"
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files"], check=True, capture_output=True, text=True
        )
        for name in listed.stdout.splitlines():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
        for mutant in chosen:
            begin = time.monotonic()
            found = is_caught(mutant, checkout)
            caught += found
            seconds = time.monotonic() - begin
            print(f"{mutant.name}: {'caught' if found else 'NOT CAUGHT'} ({seconds:.0f} s)")
            sys.stdout.flush()
    print(f"caught: {caught} of {len(chosen)}")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
