"""Options of the Hub that contradict each other, or that have no effect without another.

The same for all other sections is in `consistency`.
"""

from collections.abc import Collection, Iterator

from flame_accel.config.errors import BrokenRule
from flame_accel.config.hub_options import STEP
from flame_accel.config.schema import Config, option_value, options

_UPLOAD_OPTIONS = (
    "hub.private",
    "hub.when",
    "hub.revision",
    "hub.tag",
    "hub.overwrite",
    "hub.include_logs",
)


def find_hub_contradictions(config: Config, given_options: Collection[str]) -> Iterator[BrokenRule]:
    """The rules that options of section hub break together; see `find_contradictions`."""
    hub = config.hub
    # an explicit none turns uploads off, even if a run file sets the others
    if hub.repo_id is None and "hub.repo_id" not in given_options:
        for name in _UPLOAD_OPTIONS:
            if option_value(config, name) != options()[name].default:
                yield BrokenRule(
                    options=(name, "hub.repo_id"),
                    rule="has no effect: hub.repo_id is none, so that nothing is uploaded",
                    remedy=f"Set --hub.repo_id NAMESPACE/NAME, or remove {name}.",
                )
    if hub.when != "end" and not config.checkpoint.enable_checkpoint:
        yield BrokenRule(
            options=("hub.when", "checkpoint.enable_checkpoint"),
            rule="checkpoints are off (checkpoint.enable_checkpoint is false)",
            remedy="Add --checkpoint.enable_checkpoint, or set --hub.when end.",
        )
    if STEP in hub.revision and hub.when == "end":
        yield BrokenRule(
            options=("hub.revision", "hub.when"),
            rule="has no effect: only the exported model is uploaded (hub.when is end)",
            remedy="Set --hub.when checkpoint, or remove hub.revision.",
        )
    if hub.tag is not None and STEP not in hub.tag and hub.when != "end":
        yield BrokenRule(
            options=("hub.tag", "hub.when"),
            rule=f"names one commit, but there is one for each checkpoint (hub.when is {hub.when})",
            remedy=f"Put {STEP} into it, such as --hub.tag step-{STEP}.",
        )
