"""Options that contradict each other, or that have no effect without another.

Each check looks at a whole `Config` and returns the rule that is broken, with the remedy. Values
that are wrong by themselves are in `validation`.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

from flame_accel.config.schema import Config, value_of


class Violation(NamedTuple):
    """A rule that options break together, and what to do about it."""

    rule: str
    remedy: str


Check = Callable[[Config, Collection[str]], Violation | None]
"""Looks at a configuration and the names of the options that the user set."""


def _check_context_len(config: Config, given: Collection[str]) -> Violation | None:
    context_len, seq_len = config.training.context_len, config.training.seq_len
    if context_len is None or context_len == seq_len:
        return None
    if context_len > seq_len:
        rule = f"must be at most training.seq_len: {context_len} > {seq_len}"
        return Violation(rule, "Lower training.context_len or raise training.seq_len.")
    if not config.training.varlen:
        rule = "has no effect unless documents are kept apart"
        return Violation(rule, "Add --training.varlen, or remove training.context_len.")
    return None


def _check_packing(config: Config, given: Collection[str]) -> Violation | None:
    if config.training.packing == "sequential" or config.training.varlen:
        return None
    rule = "pads rows, which only works if documents are kept apart"
    return Violation(rule, "Add --training.varlen, or remove training.packing.")


def _check_schedule_fits(config: Config, given: Collection[str]) -> Violation | None:
    steps, warmup = config.training.steps, config.training.warmup_steps
    wsd = config.optimizer.scheduler == "wsd"
    decay = round(config.optimizer.decay_ratio * steps) if wsd else 0
    if warmup + decay <= steps:
        return None
    decaying = f" and the decay ({decay})" if wsd else ""
    rule = f"training.warmup_steps ({warmup}){decaying} must fit into training.steps ({steps})"
    return Violation(
        rule, f"Set --training.warmup_steps to at most {steps - decay}, or raise training.steps."
    )


def _check_persistent_workers(config: Config, given: Collection[str]) -> Violation | None:
    if not config.training.persistent_workers or config.training.num_workers > 0:
        return None
    rule = "there are no workers to keep alive (training.num_workers is 0)"
    return Violation(rule, "Raise training.num_workers, or remove training.persistent_workers.")


_CHECKPOINTS_OFF = "checkpoints are off (checkpoint.enable_checkpoint is false)"


def _check_load_step(config: Config, given: Collection[str]) -> Violation | None:
    if config.checkpoint.load_step < 0 or config.checkpoint.enable_checkpoint:
        return None
    return Violation(
        _CHECKPOINTS_OFF, "Add --checkpoint.enable_checkpoint, or remove checkpoint.load_step."
    )


def _check_seed_checkpoint(config: Config, given: Collection[str]) -> Violation | None:
    checkpoint = config.checkpoint
    if not checkpoint.create_seed_checkpoint:
        return None
    if not checkpoint.enable_checkpoint:
        remedy = "Add --checkpoint.enable_checkpoint, or remove checkpoint.create_seed_checkpoint."
        return Violation(_CHECKPOINTS_OFF, remedy)
    if checkpoint.load_step >= 0:
        rule = "makes the first checkpoint of a run, so there is none to load"
        return Violation(rule, "Remove checkpoint.load_step, or checkpoint.create_seed_checkpoint.")
    return None


def _check_initial_load(config: Config, given: Collection[str]) -> Violation | None:
    checkpoint = config.checkpoint
    if checkpoint.initial_load_model_weights_only or checkpoint.initial_load_path is not None:
        return None
    rule = "there is no other run to load from (checkpoint.initial_load_path is none)"
    remedy = "Name its checkpoint, or remove checkpoint.no_initial_load_model_weights_only."
    return Violation(rule, remedy)


def _check_exclude_from_loading(config: Config, given: Collection[str]) -> Violation | None:
    checkpoint = config.checkpoint
    excluded = checkpoint.exclude_from_loading
    if not excluded:
        return None
    if checkpoint.load_step >= 0:
        if "train_state" in excluded:
            rule = "a run cannot drop the step of its own checkpoint"
            remedy = (
                "Start another job.dump_folder with checkpoint.initial_load_path and"
                " checkpoint.no_initial_load_model_weights_only."
            )
            return Violation(rule, remedy)
    elif checkpoint.initial_load_path is None:
        rule = "every start would leave them out, also a restart after an interruption"
        return Violation(rule, "Name the checkpoint that is meant with checkpoint.load_step.")
    elif checkpoint.initial_load_model_weights_only:
        rule = "only the weights are loaded (checkpoint.initial_load_model_weights_only)"
        return Violation(
            rule, "Add --checkpoint.no_initial_load_model_weights_only, or remove the option."
        )
    if "lr_scheduler" in excluded and "train_state" not in excluded:
        rule = "the learning rate is a function of the step, which is part of train_state"
        return Violation(rule, "Leave out train_state too, or remove lr_scheduler.")
    return None


def _check_metrics_of_all_ranks(config: Config, given: Collection[str]) -> Violation | None:
    if config.metrics.rank_0_only or config.metrics.enable_tensorboard:
        return None
    rule = "TensorBoard is off (metrics.enable_tensorboard is false)"
    return Violation(rule, "Add --metrics.enable_tensorboard, or remove metrics.rank_0_only.")


def _check_evaluation_interval(config: Config, given: Collection[str]) -> Violation | None:
    # an explicit none turns validation off, even if a run file sets the interval
    if (
        config.evaluation.interval == 0
        or config.evaluation.dataset
        or "evaluation.dataset" in given
    ):
        return None
    rule = "there is nothing to validate on (evaluation.dataset is none)"
    return Violation(rule, "Name the validation data with evaluation.dataset.")


def _check_early_step(config: Config, given: Collection[str]) -> Violation | None:
    if not config.optimizer.early_step_in_backward:
        return None
    training = config.training
    needs = {
        "--optimizer.name AdamW": config.optimizer.name == "Muon",
        "--training.max_norm 0": training.max_norm > 0,
        "--training.no_skip_nan_inf": training.skip_nan_inf,
        "--training.gradient_accumulation_steps 1": training.gradient_accumulation_steps > 1,
    }
    missing = [flag for flag, missed in needs.items() if missed]
    if not missing:
        return None
    rule = "updates each parameter before all gradients are known and summed"
    return Violation(rule, f"Add {', '.join(missing)}, or remove optimizer.early_step_in_backward.")


def _build_float8_recipe_check(name: str) -> Check:
    def check(config: Config, given: Collection[str]) -> Violation | None:
        if not value_of(config, name) or config.float8.recipe_name is not None:
            return None
        rule = "has no effect: float8.recipe_name is none, which turns float8 off"
        return Violation(rule, f"Set --float8.recipe_name tensorwise, or remove {name}.")

    return check


def _check_float8_all_gather(config: Config, given: Collection[str]) -> Violation | None:
    float8 = config.float8
    if not float8.enable_fsdp_float8_all_gather or float8.recipe_name in (None, "tensorwise"):
        return None
    rule = f"needs one scale per weight, but {float8.recipe_name} has one per row"
    return Violation(rule, "Set --float8.recipe_name tensorwise, or remove the option.")


def _check_float8_scales(config: Config, given: Collection[str]) -> Violation | None:
    float8 = config.float8
    if not float8.precompute_float8_dynamic_scale_for_fsdp or float8.enable_fsdp_float8_all_gather:
        return None
    rule = "needs weights that are gathered in float8"
    return Violation(rule, "Add --float8.enable_fsdp_float8_all_gather, or remove the option.")


def _check_float8_tensor_parallel(config: Config, given: Collection[str]) -> Violation | None:
    if config.float8.recipe_name is None or config.training.tensor_parallel_degree == 1:
        return None
    rule = "is not supported with tensor parallelism"
    return Violation(
        rule, "Remove float8.recipe_name, or use training.data_parallel_shard_degree instead."
    )


# the options that a check compares, the most likely mistake first, and the check
CONSISTENCY_CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("training.context_len", "training.seq_len", "training.varlen"), _check_context_len),
    (("training.packing", "training.varlen"), _check_packing),
    (
        (
            "training.warmup_steps",
            "training.steps",
            "optimizer.decay_ratio",
            "optimizer.scheduler",
        ),
        _check_schedule_fits,
    ),
    (("training.persistent_workers", "training.num_workers"), _check_persistent_workers),
    (("checkpoint.load_step", "checkpoint.enable_checkpoint"), _check_load_step),
    (
        (
            "checkpoint.create_seed_checkpoint",
            "checkpoint.enable_checkpoint",
            "checkpoint.load_step",
        ),
        _check_seed_checkpoint,
    ),
    (
        ("checkpoint.initial_load_model_weights_only", "checkpoint.initial_load_path"),
        _check_initial_load,
    ),
    (
        (
            "checkpoint.exclude_from_loading",
            "checkpoint.load_step",
            "checkpoint.initial_load_path",
            "checkpoint.initial_load_model_weights_only",
        ),
        _check_exclude_from_loading,
    ),
    (("metrics.rank_0_only", "metrics.enable_tensorboard"), _check_metrics_of_all_ranks),
    (("evaluation.interval", "evaluation.dataset"), _check_evaluation_interval),
    *(
        ((name, "float8.recipe_name"), _build_float8_recipe_check(name))
        for name in (
            "float8.enable_fsdp_float8_all_gather",
            "float8.force_recompute_fp8_weight_in_bwd",
            "float8.emulate",
        )
    ),
    (("float8.enable_fsdp_float8_all_gather", "float8.recipe_name"), _check_float8_all_gather),
    (
        (
            "float8.precompute_float8_dynamic_scale_for_fsdp",
            "float8.enable_fsdp_float8_all_gather",
        ),
        _check_float8_scales,
    ),
    (("float8.recipe_name", "training.tensor_parallel_degree"), _check_float8_tensor_parallel),
    (
        (
            "optimizer.early_step_in_backward",
            "optimizer.name",
            "training.max_norm",
            "training.skip_nan_inf",
            "training.gradient_accumulation_steps",
        ),
        _check_early_step,
    ),
)
