"""Results of lm-eval in TensorBoard, beside the curves of the run that they belong to.

They are found after the run has ended, so they have a folder of their own, which is a copy of what
evaluations.jsonl holds. The curves themselves are written in `trackers`.
"""

from collections.abc import Sequence
from pathlib import Path

from flame_accel.files import replace_folder
from flame_accel.observe.evaluations_file import Evaluation
from flame_accel.observe.starts import read_options_of_last_start

FOLDER = "lm_eval"
"""Within metrics.save_tb_folder; TensorBoard shows it as a run."""


def write_evaluations_to_tensorboard(
    run_folder: Path, evaluations: Sequence[Evaluation]
) -> Path | None:
    """Writes the results of lm-eval by step, in place of earlier ones.

    Args:
        run_folder: The run folder.
        evaluations: All of the run; those of other kinds are left out.

    Returns:
        The folder; None if the run has not used TensorBoard.
    """
    options = read_options_of_last_start(run_folder)
    others = options.get("metrics.trackers")
    listed = "tensorboard" in others if isinstance(others, (list, tuple)) else False
    if options.get("metrics.enable_tensorboard") is not True and not listed:
        return None
    from torch.utils.tensorboard import SummaryWriter

    folder = run_folder / str(options["metrics.save_tb_folder"]) / FOLDER
    with replace_folder(folder) as temporary:
        writer = SummaryWriter(str(temporary))
        for record in evaluations:
            for metric, value in record.metrics.items() if record.kind == "lm_eval" else ():
                writer.add_scalar(f"{record.name}/{metric}", value, record.step)
        writer.close()
    return folder
