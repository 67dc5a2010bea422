"""Checks one model in this process: `python -m flame_accel.diagnosis.conformance TYPE DEVICE`.

Prints a line of JSON for each law of `laws`, as soon as it is checked, and one that names the
kernels on a CPU. `python -m flame_accel models` runs it for every model.
"""

import json
import sys

from transformers.utils import logging

from flame_accel.diagnosis.conformance.laws import (
    find_cpu_mixer_kernel_modules,
    law_names_for_model_type,
    run_law_checks,
)
from flame_accel.kernels.tuning import disable_tuning_then_forget_choices_made
from flame_accel.models.transformers_catalogue import tiny_config_of_any_model


def check_and_print_laws_as_json(model_type: str, device: str) -> None:
    """Checks and prints."""
    config = tiny_config_of_any_model(model_type)
    computes = False
    # what kernels compute is asked here, not how fast: tuning all of them would take an hour
    with disable_tuning_then_forget_choices_made():
        for finding in run_law_checks(config, device, law_names_for_model_type(model_type)):
            computes = computes or finding.holds
            print(json.dumps({"finding": finding._asdict()}), flush=True)
    if computes and device == "cpu":
        print(json.dumps({"kernels": find_cpu_mixer_kernel_modules(config)}), flush=True)


if __name__ == "__main__":
    logging.disable_progress_bar()
    check_and_print_laws_as_json(*sys.argv[1:])
