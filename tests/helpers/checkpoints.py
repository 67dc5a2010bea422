"""Reads checkpoints: which there are, and the weights and optimizer state in them."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def list_checkpoints(run_folder: Path) -> list[str]:
    """Names of all folders of checkpoints of a run, those set aside included."""
    return sorted(path.name for path in (run_folder / "checkpoint").iterdir())


def digests_of_all_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of an export or checkpoint."""
    return load_file(folder / "model.safetensors")


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """All weights and the optimizer's state of a checkpoint."""
    files = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("optimizer/*.safetensors")]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def equal_tensors(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether names and values are the same, bit for bit."""
    return some.keys() == others.keys() and all(torch.equal(some[n], others[n]) for n in some)


def undo_checkpoint(checkpoint: Path) -> None:
    """Leaves a run as if it had been killed before it saved this checkpoint, its last."""
    shutil.rmtree(checkpoint)
    (checkpoint.parents[1] / "ended.json").unlink(missing_ok=True)


def _put_link(checkpoints: Path, intact: Path) -> None:
    elsewhere = checkpoints.parent / "elsewhere"
    shutil.copytree(intact, elsewhere)
    (checkpoints / "step-1000").symlink_to(elsewhere)


LOOKALIKES: dict[str, Callable[[Path, Path], object]] = {
    "step-007": lambda checkpoints, intact: shutil.copytree(intact, checkpoints / "step-007"),
    "step-9" * 9: lambda checkpoints, _: (checkpoints / ("step-9" * 9)).mkdir(),
    "step-\u0663": lambda checkpoints, _: (checkpoints / "step-\u0663").mkdir(),
    "step-" + "9" * 99: lambda checkpoints, _: (checkpoints / ("step-" + "9" * 99)).mkdir(),
    "step-1000": _put_link,
    "step-1001": lambda checkpoints, _: (checkpoints / "step-1001").mkdir(),
    "step-1002": lambda checkpoints, _: (checkpoints / "step-1002").write_text("a file"),
    "step-6.tmp-mine": lambda checkpoints, _: (checkpoints / "step-6.tmp-mine").mkdir(),
    "step-6.tmp-writing": lambda folder, _: (folder / "step-6.tmp-writing").write_text("mine"),
    "step-7.tmp-writing": lambda folder, _: (folder / "step-7.tmp-writing").symlink_to("/tmp"),
}
"""What only looks like a checkpoint, by name: puts it into a folder that has an intact one."""
