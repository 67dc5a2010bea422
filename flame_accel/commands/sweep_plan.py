"""The runs of a sweep: one for each recipe, model and combination of varied values.

All are checked as the runs they will be before the first one starts. Nothing is trained here.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flame_accel.config import Config, UsageError, parse
from flame_accel.config.schema import options as declared_options
from flame_accel.config.suggestions import nearest_option_name
from flame_accel.presets import MODELS, existing_else_preset_path_or_unchanged, find_preset


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of a sweep."""

    recipe: str
    """Name of its recipe."""
    name: str
    """Its model and varied values."""
    folder: Path
    """Its run folder."""
    options: tuple[str, ...]
    """Its command line."""
    config: Config
    """What the command line means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    name: str
    options: tuple[str, ...]


def plan_runs(
    recipes: Sequence[str],
    *,
    models: Sequence[str],
    varied: Sequence[str],
    options: Sequence[str],
    output: Path,
) -> list[PlannedRun]:
    """All runs, recipe after recipe; writes the configs of models that are named by architecture.

    Args:
        recipes: run files or names of recipes.
        models: presets, JSON files, or architectures; none: the model of each recipe.
        varied: `section.option=value,value`.
        options: further options of every run, which override the recipe.
        output: folder of the sweep.

    Raises:
        ConfigError, UsageError: an option, a model or a file is wrong, or two runs have one name.
    """
    runs: list[PlannedRun] = []
    for recipe in recipes:
        name = Path(recipe).stem
        base = ("--job.config_file", recipe, *options)
        folder = output / name
        for model in _model_variants(models, base, folder / "models"):
            for variant in _combinations(varied):
                run_name = "-".join([model.name, variant.name] if variant.name else [model.name])
                place = folder / run_name
                command = (
                    *base,
                    *model.options,
                    *variant.options,
                    *("--job.dump_folder", str(place)),
                )
                runs.append(
                    PlannedRun(
                        recipe=name,
                        name=run_name,
                        folder=place,
                        options=command,
                        config=parse(command),
                    )
                )
    _check_names_differ(runs)
    return runs


def _model_variants(
    models: Sequence[str], base: tuple[str, ...], folder: Path
) -> Iterator[_Variant]:
    """The model of the recipe, or each of these: files and presets as they are."""
    own = parse(base).model.config
    assert own is not None
    if not models:
        yield _Variant(name=Path(own).stem, options=())
    for model in models:
        path = Path(existing_else_preset_path_or_unchanged(MODELS, model))
        if path.exists() or find_preset(MODELS, model) is not None or "/" in model:
            yield _Variant(name=path.stem, options=("--model.config", model))
            continue
        file = folder / f"{model}.json"
        _write_config_like(model, own, file)
        yield _Variant(name=model, options=("--model.config", str(file)))


def _write_config_like(model_type: str, own: str, file: Path) -> None:
    # torch is imported for models that are named by their architecture alone
    import flame_accel.models as models
    from flame_accel.models.matched_sizes import write_matched_config

    models.register_models(())
    file.parent.mkdir(parents=True, exist_ok=True)
    write_matched_config(model_type, models.load_model_config(own), file)


def _combinations(varied: Sequence[str]) -> Iterator[_Variant]:
    """Every choice of one value for each varied option; one without options if there are none."""
    axes = [_parse_varied(text) for text in varied]
    for choice in itertools.product(*axes):
        yield _Variant(
            name="-".join(
                f"{option.rpartition('.')[2]}={re.sub(r'[^A-Za-z0-9.+_=-]', '_', value)}"
                for option, value in choice
            ),
            options=tuple(f"--{option}={value}" for option, value in choice),
        )


def _parse_varied(text: str) -> list[tuple[str, str]]:
    """Option and value of each run."""
    option, separator, values = text.partition("=")
    option = option.strip().removeprefix("--")
    if not separator or option not in declared_options():
        near = nearest_option_name(option, declared_options())
        raise UsageError(
            "is not SECTION.OPTION=VALUE,VALUE",
            where=f"--vary {text}",
            remedy=f"did you mean {near}=...?" if near else "such as optimizer.lr=1e-3,3e-4",
        )
    return [(option, value.strip()) for value in values.split(",") if value.strip()]


def _check_names_differ(runs: Sequence[PlannedRun]) -> None:
    seen: set[Path] = set()
    for run in runs:
        if run.folder in seen:
            raise UsageError(
                f"two runs would have the folder {run.folder}",
                where="--models, --vary and the recipes",
                remedy="give files other names, and each value once",
            )
        seen.add(run.folder)
