"""Presets: run files, model configs and launch files that ship with the package, found by name.

`--job.config_file quickstart`, `--model.config gla_340M` and `ACCELERATE_CONFIG=fsdp2` name files
of `recipes/`, `models/` and `accelerate/`. In a checkout these folders are links to
`configs/recipes/`, `configs/` and `accelerate_configs/`; a wheel holds the files. What a preset
says is read by those who use it. Standard library only.
"""

import difflib
from pathlib import Path
from typing import NamedTuple


class PresetKind(NamedTuple):
    """A folder of presets."""

    folder: Path
    suffix: str
    """File extension of every preset of this kind."""
    label: str
    """What a preset of this kind is called in messages."""


RECIPES = PresetKind(Path(__file__).parent / "recipes", ".toml", "recipe")
MODELS = PresetKind(Path(__file__).parent / "models", ".json", "model preset")
ACCELERATE = PresetKind(Path(__file__).parent / "accelerate", ".yaml", "launch preset")


def preset_names(kind: PresetKind) -> list[str]:
    """Names of all presets of a kind, without the file extension, sorted."""
    return sorted(path.stem for path in kind.folder.glob(f"*{kind.suffix}"))


def find_preset(kind: PresetKind, name: str) -> Path | None:
    """The file of a preset, or None if no preset has that name (with or without extension)."""
    stem = name.removesuffix(kind.suffix)
    return kind.folder / f"{stem}{kind.suffix}" if stem in preset_names(kind) else None


def existing_else_preset_path_or_unchanged(kind: PresetKind, name_or_path: str) -> str:
    """The path of the preset with that name; any other argument is returned as it is.

    A file, or a folder with a `config.json`, wins over a preset of the same name.
    """
    path = Path(name_or_path)
    if path.is_file() or (path / "config.json").is_file():
        return name_or_path
    return str(find_preset(kind, name_or_path) or name_or_path)


def nearest_preset_names(kind: PresetKind, name: str) -> list[str]:
    """At most three presets whose names resemble a wrong one, the nearest first."""
    presets = {preset.lower(): preset for preset in preset_names(kind)}
    wanted = name.removesuffix(kind.suffix).lower()
    return [presets[key] for key in difflib.get_close_matches(wanted, presets, n=3, cutoff=0.8)]


def suggest_presets(kind: PresetKind, name: str) -> str:
    """What to do about a name that is no preset: the nearest ones, or all if none is near."""
    close = nearest_preset_names(kind, name)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Name a file, or one of: {', '.join(preset_names(kind))}."
