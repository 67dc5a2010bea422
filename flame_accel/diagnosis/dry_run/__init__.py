"""`--job.dry_run`: what a run would be, before anything is trained or written.

`plan` finds it out with `parameters`, `rehearsal`, `memory` and `run_time`; `report` prints it.
"""

import os

from transformers.utils import logging

from flame_accel.config import Config
from flame_accel.diagnosis.dry_run.plan import plan_run
from flame_accel.diagnosis.dry_run.report import format_plan, format_plan_as_json


def print_dry_run(config: Config) -> None:
    """Prints what the run of a configuration would be; of several processes the first one does.

    Raises:
        UserError: The run would end with it too: its data, model or launch.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    logging.set_verbosity_error()
    plan = plan_run(config)
    if config.job.dry_run_format == "json":
        print(format_plan_as_json(plan, config))
        return
    for line in format_plan(plan, config):
        print(line)
