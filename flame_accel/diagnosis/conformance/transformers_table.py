"""The table of transformers' own models, from results that `commands/models.py` gathers.

A section of `docs/models.md`; fla's models are in `support_table`. Nothing here runs a model.
"""

import json
from collections.abc import Mapping

from flame_accel.diagnosis.conformance.packing_support import DOCUMENTS_APART
from flame_accel.diagnosis.conformance.support_table import RESULTS, DeviceResults

TRANSFORMERS_RESULT_FILES = {
    "cpu": RESULTS / "models_transformers_cpu.json",
    "cuda": RESULTS / "models_transformers_gpu.json",
}
"""Kind of device -> the results that the page shows."""
COLUMN_NAMES = {"cpu": "CPU", "cuda": "GPU"}

HEAD = """
## Models of transformers itself

Made from the results of `python -m flame_accel models --transformers --json FILE`:

{machines}

Every decoder-only language model of transformers that fla does not register, at a tiny size with
one layer of each kind. The columns mean what they mean above. Layers with a state over time
(convolutions, the gated delta rule, KDA, Mamba2) run on fla's functions in packed rows. A run with
`training.varlen` makes the same check with its own sizes and device before it starts, so what is
not in the table is tried, too.
"""


def load_transformers_results_by_device() -> dict[str, DeviceResults]:
    """Loads the files of `TRANSFORMERS_RESULT_FILES`; a kind without a file is left out."""
    return {
        kind: json.loads(file.read_text(encoding="utf-8"))
        for kind, file in TRANSFORMERS_RESULT_FILES.items()
        if file.is_file()
    }


def render_transformers_section(results_by_device: Mapping[str, DeviceResults]) -> str:
    """The section: a row for each model, then what does not work.

    Args:
        results_by_device: As `load_transformers_results_by_device` gives them.
    """
    models = sorted({name for values in results_by_device.values() for name in values["models"]})
    machines = "\n".join(
        f"* {COLUMN_NAMES[kind]}: {values['device']}, {values['date']}; "
        + ", ".join(f"{name} {version}" for name, version in values["packages"].items())
        for kind, values in results_by_device.items()
    )
    columns = ("model", *COLUMN_NAMES.values(), "varlen", "generates")
    lines = [
        HEAD.format(machines=machines),
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *(_render_row(name, results_by_device) for name in models),
        "",
        "### What does not work, and why",
        "",
        *_render_reasons(models, results_by_device),
    ]
    return "\n".join(lines) + "\n"


def _broken_laws(
    results_by_device: Mapping[str, DeviceResults], model_type: str
) -> dict[str, dict[str, str]]:
    """Kind of device -> the laws that a model broke there -> the reason."""
    return {
        kind: {f["law"]: f["reason"] for f in record["findings"] if not f["holds"]}
        for kind, values in results_by_device.items()
        if (record := values["models"].get(model_type))
    }


def _render_row(model_type: str, results_by_device: Mapping[str, DeviceResults]) -> str:
    broken = _broken_laws(results_by_device, model_type)
    cells = [f"`{model_type}`"]
    for kind in COLUMN_NAMES:
        trains = kind in broken and not {"trains", "reloads"} & broken[kind].keys()
        cells.append(("yes" if trains else "no") if kind in broken else "not run")
    for law in (DOCUMENTS_APART, "generates"):
        working = [
            name for kind, name in COLUMN_NAMES.items() if law not in broken.get(kind, {law: ""})
        ]
        cells.append("yes" if len(working) == len(COLUMN_NAMES) else ", ".join(working) or "no")
    return "| " + " | ".join(cells) + " |"


def _render_reasons(models: list[str], results_by_device: Mapping[str, DeviceResults]) -> list[str]:
    """One line for each model and reason, with the laws and devices that it breaks."""
    lines = []
    for name in models:
        places: dict[str, list[str]] = {}
        for kind, laws in _broken_laws(results_by_device, name).items():
            for law, reason in laws.items():
                places.setdefault(reason, []).append(f"{law} ({COLUMN_NAMES[kind]})")
        lines += [f"* `{name}`, {', '.join(where)}: {why}" for why, where in places.items()]
    return lines
