"""The table of all models and what each can do, from results that `commands/models.py` gathers.

Results are plain JSON values, one file for a kind of device; `docs/models.md` is made of them.
Nothing here runs a model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from flame_accel.diagnosis.conformance.generation_laws import BEAMS, PIECES, PROMPT_LENGTHS
from flame_accel.diagnosis.conformance.known_issues import known_issue_reasons_by_law
from flame_accel.diagnosis.conformance.measures import PRECISION
from flame_accel.models.catalogue import TINY_FIELDS, fla_config_classes, tiny_config


class LawFinding(TypedDict):
    """A `laws.LawResult` as JSON."""

    law: str
    holds: bool
    reason: str
    seconds: float


class ModelResult(TypedDict):
    """The results of one model on one kind of device."""

    findings: list[LawFinding]
    kernels: list[str]


class DeviceResults(TypedDict):
    """The results of all models on one kind of device."""

    kind: str
    """"cpu" or "cuda"."""
    device: str
    date: str
    packages: dict[str, str]
    models: dict[str, ModelResult]


RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
RESULT_FILES = {"cpu": RESULTS / "models_cpu.json", "cuda": RESULTS / "models_h200.json"}
"""Kind of device -> the results that the page shows."""
DEVICE_NAMES = {"cpu": "CPU", "cuda": "H200"}

LAW_COLUMNS = {
    "keeps documents apart": "varlen",
    "leaves padding out": "left-padded batch",
    "generates": "greedy",
    "searches with beams": f"beam {BEAMS}",
    "caches": "cached = uncached",
    "reads in pieces": "prompt in pieces",
}
"""Laws with a column of their own -> its head."""
NEED_CACHE = ("caches", "reads in pieces")
"""Laws that say nothing of an architecture without a cache."""

HEAD = f"""\
# Models

Made by `python -m flame_accel models --write docs/models.md` from the results of
`python -m flame_accel models --json FILE` on these machines:

{{machines}}

Every causal language model that fla registers, at a tiny size
({TINY_FIELDS["hidden_size"]} channels, {TINY_FIELDS["num_hidden_layers"]} layers), in float32 on
the CPU and under bfloat16 autocast on the H200:

* **CPU**, **H200**: two optimizer steps lower the loss, every parameter gets a finite gradient, and
  the model that is saved and loaded through `AutoModelForCausalLM` has the same logits, bit by bit.
* **varlen**: in a row of packed documents (`cu_seqlens`) the logits of a document stay
  bit-identical when another one changes, its loss has no gradient in another, and its logits are
  those of the document alone. `training.varlen` is refused where this does not hold.
* **left-padded batch**: prompts of {", ".join(map(str, PROMPT_LENGTHS))} tokens, padded on the
  left to one batch, generate with the logits that one pass over each text alone has; scores of a
  batch padded on either side are those of each text alone too.
* **greedy**: generation token by token has the logits, and takes the tokens, of one pass.
* **beam {BEAMS}**: beams of the padded batch have the scores of one pass over their texts, and the
  best one the score that a search over each prompt alone finds without a cache.
* **cached = uncached**: generation with a cache has the logits of generation without. An
  architecture without one refuses it, and computes the whole text again for every token.
* **prompt in pieces**: a prompt read in pieces of {", ".join(map(str, PIECES))} tokens, whose cache
  is handed on, has the logits of one pass. Where not, an error says so, and a padded batch that a
  model cannot continue in pieces raises one too.
* **kernels without a GPU**: the modules of `flame_accel/kernels/` that mix the tokens; on a GPU
  fla's own kernels do.

Relative errors of logits that count as the same are at most
{PRECISION["cpu"].packing:.0e} (varlen) and {PRECISION["cpu"].step:.0e} (generation) on the CPU,
and {PRECISION["cuda"].packing} and {PRECISION["cuda"].step} on the H200. For generation noise is
added to all weights, so that no layer is the identity. By design fla's MoBA attends to all blocks
when it generates (2502.13189, section 3.3); here it does so in one pass too.
"""


def load_existing_results_by_device(
    files_by_device: Mapping[str, Path],
) -> dict[str, DeviceResults]:
    """Loads results by kind of device, as the files are given; one without a file is left out."""
    return {
        kind: json.loads(file.read_text(encoding="utf-8"))
        for kind, file in files_by_device.items()
        if file.is_file()
    }


def known_or_raised_reasons_by_broken_law(
    device_results: DeviceResults, model_type: str
) -> dict[str, str]:
    """The laws that a model broke, each with the reason: the known one, or else what was raised."""
    known = known_issue_reasons_by_law(model_type, device_results["kind"])
    findings = device_results["models"][model_type]["findings"]
    broken = {finding["law"]: finding["reason"] for finding in findings if not finding["holds"]}
    return broken | {law: reason for law, reason in known.items() if law in broken}


def render_models_page(results_by_device: Mapping[str, DeviceResults]) -> str:
    """The page: a row for each model, then the reason of every issue.

    Args:
        results_by_device: by kind of device, as `load_existing_results_by_device` gives them.
    """
    models = sorted(fla_config_classes())
    machines = "\n".join(map(_render_machine_line, results_by_device.values()))
    columns = ("model", *DEVICE_NAMES.values(), *LAW_COLUMNS.values(), "kernels without a GPU")
    rows = [_model_row_cells(model_type, results_by_device) for model_type in models]
    lines = [HEAD.format(machines=machines), *render_table(columns, rows)]
    reasons = render_broken_law_lines(models, results_by_device, DEVICE_NAMES)
    if reasons:
        lines += ["", "## What does not work, and why", "", *reasons]
    return "\n".join(lines) + "\n"


def render_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:]]


def _render_machine_line(device_results: DeviceResults) -> str:
    packages = ", ".join(
        f"{name} {version}" for name, version in device_results["packages"].items()
    )
    name = DEVICE_NAMES[device_results["kind"]]
    missing = [
        column
        for law, column in LAW_COLUMNS.items()
        if not any(_was_checked(device_results, each, law) for each in device_results["models"])
    ]
    # the noise on the weights came with the laws that these results lack
    older = f"; without {', '.join(missing)}, and greedy without noise" if missing else ""
    return f"* {name}: {device_results['device']}, {device_results['date']}; {packages}{older}"


def _model_row_cells(
    model_type: str, results_by_device: Mapping[str, DeviceResults]
) -> tuple[str, ...]:
    trains = training_cell_by_device(model_type, results_by_device, DEVICE_NAMES)
    cells = working_devices_cell_by_law(model_type, results_by_device, DEVICE_NAMES, LAW_COLUMNS)
    if not tiny_config(model_type).use_cache:
        cells |= dict.fromkeys(NEED_CACHE, "no cache")
    kernels = results_by_device["cpu"]["models"][model_type]["kernels"]
    served = ", ".join(f"`{name}`" for name in kernels) or "fla's own PyTorch code"
    return f"`{model_type}`", *trains.values(), *cells.values(), served


def training_cell_by_device(
    model_type: str, results_by_device: Mapping[str, DeviceResults], devices: Iterable[str]
) -> dict[str, str]:
    """Whether a model trains and reloads on each kind of device: yes, no, or not run."""
    broken = _broken_law_reasons_by_checked_device(model_type, results_by_device)
    cells = dict.fromkeys(devices, "not run")
    for kind in cells.keys() & broken.keys():
        cells[kind] = "no" if {"trains", "reloads"} & broken[kind].keys() else "yes"
    return cells


def working_devices_cell_by_law(
    model_type: str,
    results_by_device: Mapping[str, DeviceResults],
    device_names: Mapping[str, str],
    laws: Iterable[str],
) -> dict[str, str]:
    """Where each law holds for a model: yes for all devices, the names of some, or no.

    Args:
        model_type: As its own package registers it.
        results_by_device: By kind of device.
        device_names: Kind of device -> its name in the table.
        laws: Those that have a column.
    """
    broken = _broken_law_reasons_by_checked_device(model_type, results_by_device)
    cells: dict[str, str] = {}
    for law in laws:
        working = [
            name
            for kind, name in device_names.items()
            if kind in broken
            and law not in broken[kind]
            and _was_checked(results_by_device[kind], model_type, law)
        ]
        cells[law] = "yes" if len(working) == len(device_names) else ", ".join(working) or "no"
    return cells


def _was_checked(device_results: DeviceResults, model_type: str, law: str) -> bool:
    findings = device_results["models"][model_type]["findings"]
    return any(finding["law"] == law for finding in findings)


def _broken_law_reasons_by_checked_device(
    model_type: str, results_by_device: Mapping[str, DeviceResults]
) -> dict[str, dict[str, str]]:
    """`known_or_raised_reasons_by_broken_law` of each kind of device that checked the model."""
    return {
        kind: known_or_raised_reasons_by_broken_law(device_results, model_type)
        for kind, device_results in results_by_device.items()
        if model_type in device_results["models"]
    }


def render_broken_law_lines(
    model_types: Iterable[str],
    results_by_device: Mapping[str, DeviceResults],
    device_names: Mapping[str, str],
) -> list[str]:
    """One line for each model and reason, with the laws and devices that it breaks."""
    lines: list[str] = []
    for model_type in model_types:
        places: dict[str, list[str]] = {}
        broken = _broken_law_reasons_by_checked_device(model_type, results_by_device)
        for kind, reasons in broken.items():
            for law, reason in reasons.items():
                places.setdefault(reason, []).append(f"{law} ({device_names[kind]})")
        lines += [f"* `{model_type}`, {', '.join(where)}: {why}" for why, where in places.items()]
    return lines
