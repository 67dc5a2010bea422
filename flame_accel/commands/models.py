"""Checks on this machine what every model of fla can do, and writes the page that shows it.

The laws live in `diagnosis/conformance/laws.py`, the page in `support_table` next to it. Each model
has a process and a time limit of its own: one that crashes or hangs takes no other with it.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from flame_accel.config import UsageError
from flame_accel.files import write_text_atomically

if TYPE_CHECKING:
    from flame_accel.diagnosis.conformance.support_table import DeviceResults, ModelResult

PACKAGES = ("torch", "triton", "transformers", "fla")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model", nargs="*", help="model types to check; all of fla if none")
    parser.add_argument(
        "--transformers", action="store_true", help="check all models of transformers itself"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time (2)")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a model (300)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results, written as they come")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="write the page from results; check nothing"
    )


def run(arguments: argparse.Namespace) -> None:
    """Checks and prints, or writes the page."""
    from flame_accel.models.catalogue import fla_config_classes
    from flame_accel.models.transformers_catalogue import transformers_only_decoder_config_classes

    if arguments.write is not None:
        from flame_accel.diagnosis.conformance.support_table import (
            RESULT_FILES,
            load_existing_results_by_device,
            render_models_page,
        )
        from flame_accel.diagnosis.conformance.transformers_table import (
            TRANSFORMERS_RESULT_FILES,
            render_transformers_section,
        )

        of_fla = render_models_page(load_existing_results_by_device(RESULT_FILES))
        of_transformers = render_transformers_section(
            load_existing_results_by_device(TRANSFORMERS_RESULT_FILES)
        )
        write_text_atomically(arguments.write, of_fla + of_transformers)
        print(arguments.write)
        return
    registered = sorted(fla_config_classes())
    of_transformers = sorted(transformers_only_decoder_config_classes())
    unknown = [name for name in arguments.model if name not in (*registered, *of_transformers)]
    if unknown:
        raise UsageError(
            f"neither fla nor transformers has a model type {', '.join(unknown)}",
            remedy=f"name one of {', '.join((*registered, *of_transformers))}",
        )
    results = new_device_results_without_models(arguments.device)
    started_at = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        names = arguments.model or (of_transformers if arguments.transformers else registered)
        jobs = {
            pool.submit(
                check_laws_of_model_in_subprocess, name, results["kind"], arguments.limit
            ): name
            for name in names
        }
        for done, job in enumerate(as_completed(jobs), start=1):
            results["models"][jobs[job]] = job.result()
            elapsed_seconds = time.monotonic() - started_at
            progress = f"{done}/{len(jobs)} {elapsed_seconds:4.0f} s"
            print(f"{progress}  {format_model_result(jobs[job], results)}", flush=True)
            if arguments.json is not None:
                text = json.dumps(results, indent=1, sort_keys=True)
                write_text_atomically(arguments.json, text + "\n")


def new_device_results_without_models(device_kind: str | None) -> "DeviceResults":
    """The head of a file of results: device, date and versions; no models yet."""
    import platform

    import torch

    kind = device_kind or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.cuda.get_device_name() if kind == "cuda" else platform.machine()
    return {
        "kind": kind,
        "device": device,
        "date": time.strftime("%Y-%m-%d"),
        "packages": {name: importlib.import_module(name).__version__ for name in PACKAGES},
        "models": {},
    }


def check_laws_of_model_in_subprocess(
    model_type: str, device_kind: str, limit_seconds: float
) -> "ModelResult":
    """Checks one model in a process of its own.

    Returns:
        Its findings in the order of the laws, and the kernels that it tells of. A process that dies
        or runs out of time says so in place of the law that it was at, and of those after it.
    """
    from flame_accel.diagnosis.conformance.laws import law_names_for_model_type

    command = [sys.executable, "-m", "flame_accel.diagnosis.conformance", model_type, device_kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=limit_seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        output, reason = error.stdout or b"", f"no answer within {limit_seconds:.0f} s"
    else:
        output = done.stdout
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        reason = f"the process died with exit code {done.returncode}: {last}"
    record: ModelResult = {"findings": [], "kernels": []}
    for text in output.decode(errors="replace").splitlines():
        if text.startswith('{"finding": '):
            record["findings"].append(json.loads(text)["finding"])
        elif text.startswith('{"kernels": '):
            record["kernels"] = json.loads(text)["kernels"]
    for law in law_names_for_model_type(model_type)[len(record["findings"]) :]:
        record["findings"].append({"law": law, "holds": False, "reason": reason, "seconds": 0.0})
    return record


def format_model_result(model_type: str, results: "DeviceResults") -> str:
    """What became of one model, for the screen."""
    from flame_accel.diagnosis.conformance.support_table import (
        known_or_raised_reasons_by_broken_law,
    )

    broken = known_or_raised_reasons_by_broken_law(results, model_type)
    findings = results["models"][model_type]["findings"]
    seconds = sum(finding["seconds"] for finding in findings)
    told = "".join(f"\n      {law}: {reason}" for law, reason in broken.items())
    return f"{model_type} ({seconds:.0f} s): {'all well' if not broken else 'broken'}{told}"
