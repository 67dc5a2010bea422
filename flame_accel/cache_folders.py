"""Where other packages keep their caches when the home folder cannot be written to.

Hugging Face's libraries, Triton, PyTorch, W&B and others keep files below the home folder, and some
create theirs on import. In a container or on a cluster that folder may be read-only, full or not
there at all, and a run needs none of these files later. `redirect_unwritable_caches` sends each of
them to a temporary folder instead, through the environment variable that its package reads. It must
run before these packages are imported.
"""

import os
import sys
import tempfile
from pathlib import Path

ROOTS = {
    "XDG_CACHE_HOME": "~/.cache",
    "XDG_CONFIG_HOME": "~/.config",
    "XDG_DATA_HOME": "~/.local/share",
    "HF_HOME": "{XDG_CACHE_HOME}/huggingface",
    "HUGGINGFACE_HUB_CACHE": "{HF_HOME}/hub",
}
"""Environment variables that the places of caches are relative to, and their defaults."""
CACHES = {
    "HF_HOME": "{HF_HOME}",
    "CUDA_CACHE_PATH": "~/.nv/ComputeCache",
    "FLAME_ACCEL_CACHE": "{XDG_CACHE_HOME}/flame_accel",
    "HF_ASSETS_CACHE": "{HF_HOME}/assets",
    "HF_DATASETS_CACHE": "{HF_HOME}/datasets",
    "HF_EVALUATE_CACHE": "{HF_HOME}/evaluate",
    "HF_HUB_CACHE": "{HUGGINGFACE_HUB_CACHE}",
    "HF_METRICS_CACHE": "{HF_HOME}/metrics",
    "HF_MODULES_CACHE": "{HF_HOME}/modules",
    "HF_XET_CACHE": "{HF_HOME}/xet",
    "MPLCONFIGDIR": "{XDG_CONFIG_HOME}/matplotlib",
    "PYTORCH_KERNEL_CACHE_PATH": "{XDG_CACHE_HOME}/torch/kernels",
    "TILELANG_CACHE_DIR": "~/.tilelang/cache",
    "TORCH_EXTENSIONS_DIR": "{XDG_CACHE_HOME}/torch_extensions",
    "TRITON_HOME": "~",
    "WANDB_CACHE_DIR": "{XDG_CACHE_HOME}/wandb",
    "WANDB_CONFIG_DIR": "{XDG_CONFIG_HOME}/wandb",
    "WANDB_DATA_DIR": "{XDG_DATA_HOME}/wandb",
}
"""Environment variable of every cache, and where its package keeps it without the variable."""
READABLE_IS_ENOUGH = {"HF_HUB_CACHE"}
"""Caches that serve what they hold even if nothing can be added: shared downloads of a cluster."""


def redirect_unwritable_caches() -> None:
    """Points the variable of every cache that cannot be written to at a temporary folder.

    The folder is the same for all processes of a user on a machine and outlives them, so that
    compiled kernels are found again. One line on standard error, of rank 0, says so.
    """
    roots: dict[str, str] = {}
    for variable, default in ROOTS.items():
        roots[variable] = os.environ.get(variable) or default.format_map(roots)
    unwritable: dict[str, Path] = {}
    for variable, default in CACHES.items():
        folder = Path(os.environ.get(variable) or default.format_map(roots))
        folder = Path(os.path.expandvars(os.path.expanduser(folder)))
        enough = variable in READABLE_IS_ENOUGH and os.access(folder, os.R_OK | os.X_OK)
        if not enough and not _is_writable(folder):
            unwritable[variable] = folder
    if not unwritable:
        return
    if "HF_HOME" in unwritable:
        # what it holds is still read
        os.environ.setdefault("HF_TOKEN_PATH", f"{roots['HF_HOME']}/token")
        os.environ.setdefault("HF_HUB_CACHE", roots["HUGGINGFACE_HUB_CACHE"])
    temporary = _make_user_temporary_folder()
    for variable in unwritable:
        folder = temporary / variable.lower()
        folder.mkdir(exist_ok=True)
        os.environ[variable] = str(folder)
    if os.environ.get("RANK", "0") == "0":
        variable, folder = next(iter(unwritable.items()))
        print(
            f"{len(unwritable)} cache folders cannot be written to, such as {variable} = {folder}: "
            f"using {temporary} instead",
            file=sys.stderr,
        )


def _is_writable(folder: Path) -> bool:
    """Whether a file can be created in a folder, or in the nearest parent if it does not exist."""
    if not folder.is_absolute():
        # a home folder that is not known stays "~"
        return not str(folder).startswith("~") and _is_writable(folder.absolute())
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"0")
    except OSError:
        return False
    return True


def _make_user_temporary_folder() -> Path:
    """A private folder below the system's temporary one, with the same name for all processes."""
    folder = Path(tempfile.gettempdir()) / f"flame_accel-caches-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError:
        owner = None
    # a folder of somebody else's making is not to be trusted
    return folder if owner == os.getuid() else Path(tempfile.mkdtemp(prefix="flame_accel-caches-"))
