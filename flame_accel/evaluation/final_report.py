"""What a finished run shows: text that its exported model generates, and its report.

The text is generated in `generate`, the page is drawn in `observe/report`. Both only show what was
trained: a failure of them is logged, and the run has finished all the same.
"""

from pathlib import Path

from accelerate import Accelerator

from flame_accel.config import EvaluationConfig
from flame_accel.config.secrets import mask_secrets
from flame_accel.evaluation.generate import load_export_and_sample_prompt_with_continuation
from flame_accel.observe import get_logger, title_run, write_report
from flame_accel.observe.evaluations_file import Evaluation, EvaluationsFile, Sample

EXPORTED_MODEL = "exported model"
"""Name of the record with the sample."""


def try_to_sample_on_main(
    accelerator: Accelerator,
    exported: Path,
    run_folder: Path,
    options: EvaluationConfig,
    *,
    seed: int,
    step: int,
    tokens: int,
) -> None:
    """Logs and records a sample of generated text, if so configured.

    The main process does it, and raises no `Exception`: failures are logged.

    Args:
        accelerator: The run's accelerator; the sample is computed on its device.
        exported: Folder of the exported model.
        run_folder: The run folder.
        options: Options of section evaluation.
        seed: Random seed of the sample.
        step: Number of completed training steps.
        tokens: Number of tokens that the model was trained on.
    """
    if not accelerator.is_main_process:
        return
    log = get_logger()
    try:
        if options.sample_tokens:
            sample = load_export_and_sample_prompt_with_continuation(
                exported, accelerator.device, options, seed=seed
            )
            log.info("sample of the exported model:\n%s", sample)
            sample, prompt = mask_secrets(sample), mask_secrets(options.prompt)
            # a tokenizer may not give back what it was given
            prompt = prompt if sample.startswith(prompt) else ""
            EvaluationsFile(run_folder).append(
                Evaluation(
                    step=step,
                    tokens=tokens,
                    kind="set",
                    name=EXPORTED_MODEL,
                    metrics={},
                    samples=[Sample(prompt=prompt, text=sample.removeprefix(prompt))],
                )
            )
    except Exception as error:
        log.warning("no sample of the exported model: %s: %s", type(error).__name__, error)


def try_to_write_report_on_main(
    accelerator: Accelerator, run_folder: Path, description: str
) -> None:
    """Writes report.html of a run whose end is recorded, so that the report can say so.

    The main process does it, and raises no `Exception`: a failure is logged.

    Args:
        accelerator: The run's accelerator.
        run_folder: The run folder, whose measurements are drawn.
        description: Of the run, for the heading; may be empty.
    """
    if not accelerator.is_main_process:
        return
    log = get_logger()
    try:
        page = write_report(run_folder, title=title_run(description, run_folder.name))
        log.info("report: %s", page)
    except Exception as error:
        log.warning("no report: %s: %s", type(error).__name__, error)
