"""The metric by which the best checkpoint is kept: its key in metrics.jsonl, and its direction."""

from collections.abc import Iterator

from flame_accel.config.errors import BrokenRule
from flame_accel.config.evaluation_sets import MAIN_SET, SHIPPED_METRICS, evaluation_sets
from flame_accel.config.run_options import CheckpointConfig
from flame_accel.config.schema import Config
from flame_accel.config.suggestions import nearest_text

_OPTION = "checkpoint.keep_best"


def best_is_lowest(checkpoint: CheckpointConfig) -> bool:
    """Whether the lowest value is the best one; of accuracies it is the highest."""
    if checkpoint.best_direction == "auto":
        return not str(checkpoint.keep_best).endswith("accuracy")
    return checkpoint.best_direction == "min"


def find_best_checkpoint_contradictions(config: Config) -> Iterator[BrokenRule]:
    """A metric that no validation gives, or of which it is not known which value is the best."""
    checkpoint, evaluation = config.checkpoint, config.evaluation
    key = checkpoint.keep_best
    if key is None:
        if checkpoint.export_best:
            yield BrokenRule(
                options=("checkpoint.export_best", _OPTION),
                rule="needs a best checkpoint (checkpoint.keep_best is none)",
                remedy="Add --checkpoint.keep_best eval/loss, or remove the option.",
            )
        return
    if not checkpoint.enable_checkpoint:
        yield BrokenRule(
            options=(_OPTION, "checkpoint.enable_checkpoint"),
            rule="checkpoints are off (checkpoint.enable_checkpoint is false)",
            remedy="Add --checkpoint.enable_checkpoint, or remove checkpoint.keep_best.",
        )
    prefixes = {
        "eval/" if each.name == MAIN_SET else f"eval/{each.name}/": each.is_probe
        for each in evaluation_sets(evaluation)
    }
    prefix, _, metric = key.rpartition("/")
    own_modules = [name for name in evaluation.metrics if name not in SHIPPED_METRICS]
    known = [
        f"{start}{name}"
        for start, is_probe in prefixes.items()
        for name in (*evaluation.metrics, *(["answer_accuracy"] if is_probe else []))
        if name in SHIPPED_METRICS and not (is_probe and name == "bits_per_byte")
    ]
    if key not in known and not (own_modules and f"{prefix}/" in prefixes):
        near = nearest_text(key, known)
        remedy = f"Did you mean {near}?" if near else f"Name one of {', '.join(known)}."
        yield BrokenRule(
            options=(_OPTION, "evaluation.dataset", "evaluation.sets", "evaluation.metrics"),
            rule="is no metric of the validation",
            remedy=remedy if known else "Name validation data with evaluation.dataset.",
        )
    elif checkpoint.best_direction == "auto" and metric not in SHIPPED_METRICS:
        yield BrokenRule(
            options=("checkpoint.best_direction", _OPTION),
            rule=f"is needed for {key}: whether its lowest or its highest value is the best one",
            remedy="Set --checkpoint.best_direction min or max.",
        )
