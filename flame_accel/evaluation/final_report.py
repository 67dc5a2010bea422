"""What a finished run shows: text that its exported model generates, and its report.

The text is generated in `generate`, the page is drawn in `observe/report`.
"""

from pathlib import Path

import torch

from flame_accel.config import EvaluationConfig
from flame_accel.evaluation.generate import load_export_and_sample_prompt_with_continuation
from flame_accel.observe import get_logger, write_report


def log_sample_and_write_html_report(
    exported: Path,
    run_folder: Path,
    device: torch.device,
    options: EvaluationConfig,
    *,
    seed: int,
    title: str,
) -> None:
    """Logs a sample of generated text, if so configured, and writes report.html.

    Args:
        exported: Folder of the exported model.
        run_folder: The run folder, whose measurements are drawn.
        device: Where the sample is computed.
        options: Options of section evaluation.
        seed: Random seed of the sample.
        title: Heading of the report.
    """
    log = get_logger()
    sample = ""
    if options.sample_tokens:
        sample = load_export_and_sample_prompt_with_continuation(
            exported, device, options, seed=seed
        )
        log.info("sample of the exported model:\n%s", sample)
    log.info("report: %s", write_report(run_folder, title=title, sample=sample))
