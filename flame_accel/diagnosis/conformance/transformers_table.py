"""The table of transformers' own models, from results that `commands/models.py` gathers.

A section of `docs/models.md`; fla's models are in `support_table`. Nothing here runs a model.
"""

from collections.abc import Mapping

from flame_accel.diagnosis.conformance.packing_support import DOCUMENTS_APART
from flame_accel.diagnosis.conformance.support_table import (
    RESULTS,
    DeviceResults,
    render_broken_law_lines,
    render_table,
    training_cell_by_device,
    working_devices_cell_by_law,
)

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


def render_transformers_section(results_by_device: Mapping[str, DeviceResults]) -> str:
    """The section: a row for each model, then what does not work.

    Args:
        results_by_device: By kind of device, from `TRANSFORMERS_RESULT_FILES`.
    """
    models = sorted({name for values in results_by_device.values() for name in values["models"]})
    machines = "\n".join(
        f"* {COLUMN_NAMES[kind]}: {values['device']}, {values['date']}; "
        + ", ".join(f"{name} {version}" for name, version in values["packages"].items())
        for kind, values in results_by_device.items()
    )
    rows = []
    for name in models:
        trains = training_cell_by_device(name, results_by_device, COLUMN_NAMES)
        laws = working_devices_cell_by_law(
            name, results_by_device, COLUMN_NAMES, (DOCUMENTS_APART, "generates")
        )
        rows.append((f"`{name}`", *trains.values(), *laws.values()))
    lines = [
        HEAD.format(machines=machines),
        *render_table(("model", *COLUMN_NAMES.values(), "varlen", "generates"), rows),
        "",
        "### What does not work, and why",
        "",
        *render_broken_law_lines(models, results_by_device, COLUMN_NAMES),
    ]
    return "\n".join(lines) + "\n"
