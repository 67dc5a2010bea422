"""Whether the Hub lacks the exported model of a run that has finished: then it is uploaded again.

An upload that was interrupted, a repository or file that was deleted by hand. The upload itself is
one of `uploads`.
"""

from pathlib import Path

from flame_accel.hub.branch_upload import branch_names_fullmatch_regex
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_process import HubProcess
from flame_accel.hub.upload_record import (
    PlannedUpload,
    read_upload_record_or_empty,
    remove_needless_stages,
)
from flame_accel.hub.uploaded_files import checksum_of_model_files
from flame_accel.observe import get_logger


def is_export_on_hub(run_folder: Path, repo_id: str, export: PlannedUpload) -> bool:
    """Whether the Hub holds the exported model, as far as it can be asked.

    Folders that an interrupted upload has left and nothing needs are removed.

    Args:
        run_folder: The folder of the finished run.
        repo_id: The repository.
        export: The upload of its exported model.
    """
    log = get_logger()
    exported = run_folder / export.source
    record = read_upload_record_or_empty(run_folder, repo_id, report_damage=log.warning)
    if record.planned or not record.branches_hold_checksum(
        export.revisions, checksum_of_model_files(exported)
    ):
        return False
    remove_needless_stages(run_folder, record)
    query = record.build_branch_query(branch_names_fullmatch_regex(export.revisions))
    try:
        branches = HubProcess().describe_branches(record.repo_id, query)
    except HubProblem as problem:
        if problem.reason == "missing":
            return False
        # there is nothing to do that needs the Hub or a login
        log.warning("%s was uploaded; nobody asked the Hub: %s", exported, problem.message)
        return True
    heads = {name: state.commit for name, state in branches.items()}
    if any(record.finished[name].commit != heads.get(name) for name in export.revisions):
        return False
    log.info("%s is on the Hub already: %s", exported, record.repo_id)
    return True
