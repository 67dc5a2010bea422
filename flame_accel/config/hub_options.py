"""Options of the Hub: where and when the model is uploaded, and what its card says.

Their patterns are in `validation`, which of them go together is in `hub_consistency`.
"""

from dataclasses import dataclass

STEP = "{step}"
"""Stands for the step in names of branches and tags."""
_LICENSES = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear"
    " bsl-1.0 cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0"
    " cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0"
    " cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0"
    " ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1"
    " lgpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 mit mpl-2.0 ms-pl ncsa odbl odc-by"
    " openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib"
)
LICENSES = frozenset(_LICENSES.split())
"""Identifiers that the Hub accepts: https://huggingface.co/docs/hub/repositories-licenses"""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubConfig:
    """Uploads to the Hugging Face Hub in the background of training, and the model card."""

    repo_id: str | None = None
    """Model repository on the Hub, as NAMESPACE/NAME; it is created if it does not exist. NAME
    alone is in the namespace of whoever is logged in; the log says the whole name. The access token
    is that of `hf auth login` or of the environment variable HF_TOKEN. None uploads nothing."""
    private: bool = True
    """Create the repository as a private one. A public repository that exists already is only used
    if this is false."""
    when: str = "end"
    """When to upload: `end` (the exported model, once training has ended), `checkpoint` (also every
    checkpoint on the way) or N (also every N-th checkpoint). If checkpoints are saved faster than
    they can be uploaded, only the newest one of a branch is, unless each has a tag of its own."""
    revision: str = "main"
    """Branch to upload to. `{step}` in it stands for the step, such as step-{step}: every
    checkpoint then has a branch of its own, and the exported model is also on main."""
    tag: str | None = None
    """Tag for each upload. `{step}` in it stands for the step, such as step-{step}."""
    overwrite: bool = False
    """Replace a model on the branch that this run did not upload; without it the run is refused
    before its first step."""
    include_logs: bool = False
    """Also upload metrics.jsonl, evaluations.jsonl, report.html and config.toml, to the folder
    training/ of the repository. Absolute paths in them are reduced to their last part."""
    wait_seconds: int = 600
    """Longest time to wait for the last upload when training has ended, in seconds."""
    model_name: str | None = None
    """Name of the model in its card. None takes the name in hub.repo_id or, without one, the
    architecture and the number of parameters, such as gla-340M."""
    license: str | None = None
    """License of the model in its card, by its identifier on the Hub, such as apache-2.0. None
    states none."""
    language: tuple[str, ...] = ()
    """Languages of the training data in the card, by their ISO 639 codes, separated by commas, such
    as en,de; `code` stands for source code."""
    tags: tuple[str, ...] = ()
    """Tags of the model in its card, separated by commas, in addition to those of the architecture.
    """
    base_model: str | None = None
    """Model on the Hub that this one was made from, as NAMESPACE/NAME. None takes that of
    checkpoint.initial_load_path, if it is one of the Hub."""
