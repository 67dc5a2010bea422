"""Options that contradict each other, or that have no effect without another.

Each check looks at a whole `Config` and returns the rule that is broken, with the remedy. Values
that are wrong by themselves are in `validation`.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

from flame_accel.config.schema import Config, option_value


class Violation(NamedTuple):
    """A rule that options break together, and what to do about it."""

    rule: str
    remedy: str


Check = Callable[[Config, Collection[str]], Violation | None]
"""Looks at a configuration and the names of the options that the user set."""


def _context_len_violation(config: Config, given_options: Collection[str]) -> Violation | None:
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


def _padded_packing_without_varlen_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
    if config.training.packing == "sequential" or config.training.varlen:
        return None
    rule = "pads rows, which only works if documents are kept apart"
    return Violation(rule, "Add --training.varlen, or remove training.packing.")


def _schedule_longer_than_steps_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
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


def _persistent_workers_without_workers_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
    if not config.training.persistent_workers or config.training.num_workers > 0:
        return None
    rule = "there are no workers to keep alive (training.num_workers is 0)"
    return Violation(rule, "Raise training.num_workers, or remove training.persistent_workers.")


_CHECKPOINTS_OFF = "checkpoints are off (checkpoint.enable_checkpoint is false)"


def _load_step_without_checkpoints_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
    if config.checkpoint.load_step < 0 or config.checkpoint.enable_checkpoint:
        return None
    return Violation(
        _CHECKPOINTS_OFF, "Add --checkpoint.enable_checkpoint, or remove checkpoint.load_step."
    )


def _seed_checkpoint_violation(config: Config, given_options: Collection[str]) -> Violation | None:
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


def _full_initial_load_without_path_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
    checkpoint = config.checkpoint
    if checkpoint.initial_load_model_weights_only or checkpoint.initial_load_path is not None:
        return None
    rule = "there is no other run to load from (checkpoint.initial_load_path is none)"
    remedy = "Name its checkpoint, or remove checkpoint.no_initial_load_model_weights_only."
    return Violation(rule, remedy)


def _exclude_from_loading_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
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


def _all_rank_metrics_without_tensorboard_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
    if config.metrics.rank_0_only or config.metrics.enable_tensorboard:
        return None
    rule = "TensorBoard is off (metrics.enable_tensorboard is false)"
    return Violation(rule, "Add --metrics.enable_tensorboard, or remove metrics.rank_0_only.")


def _evaluation_interval_without_dataset_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
    # an explicit none turns validation off, even if a run file sets the interval
    if (
        config.evaluation.interval == 0
        or config.evaluation.dataset
        or "evaluation.dataset" in given_options
    ):
        return None
    rule = "there is nothing to validate on (evaluation.dataset is none)"
    return Violation(rule, "Name the validation data with evaluation.dataset.")


def _early_step_in_backward_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
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


def _build_no_float8_recipe_violation_check(name: str) -> Check:
    def check(config: Config, given_options: Collection[str]) -> Violation | None:
        if not option_value(config, name) or config.float8.recipe_name is not None:
            return None
        rule = "has no effect: float8.recipe_name is none, which turns float8 off"
        return Violation(rule, f"Set --float8.recipe_name tensorwise, or remove {name}.")

    return check


def _float8_all_gather_without_tensorwise_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
    float8 = config.float8
    if not float8.enable_fsdp_float8_all_gather or float8.recipe_name in (None, "tensorwise"):
        return None
    rule = f"needs one scale per weight, but {float8.recipe_name} has one per row"
    return Violation(rule, "Set --float8.recipe_name tensorwise, or remove the option.")


def _float8_scales_without_all_gather_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
    float8 = config.float8
    if not float8.precompute_float8_dynamic_scale_for_fsdp or float8.enable_fsdp_float8_all_gather:
        return None
    rule = "needs weights that are gathered in float8"
    return Violation(rule, "Add --float8.enable_fsdp_float8_all_gather, or remove the option.")


def _float8_with_tensor_parallel_violation(
    config: Config, given_options: Collection[str]
) -> Violation | None:
    if config.float8.recipe_name is None or config.training.tensor_parallel_degree == 1:
        return None
    rule = "is not supported with tensor parallelism"
    return Violation(
        rule, "Remove float8.recipe_name, or use training.data_parallel_shard_degree instead."
    )


# the options that a check compares, the most likely mistake first, and the check
CONSISTENCY_CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("training.context_len", "training.seq_len", "training.varlen"), _context_len_violation),
    (("training.packing", "training.varlen"), _padded_packing_without_varlen_violation),
    (
        (
            "training.warmup_steps",
            "training.steps",
            "optimizer.decay_ratio",
            "optimizer.scheduler",
        ),
        _schedule_longer_than_steps_violation,
    ),
    (
        ("training.persistent_workers", "training.num_workers"),
        _persistent_workers_without_workers_violation,
    ),
    (
        ("checkpoint.load_step", "checkpoint.enable_checkpoint"),
        _load_step_without_checkpoints_violation,
    ),
    (
        (
            "checkpoint.create_seed_checkpoint",
            "checkpoint.enable_checkpoint",
            "checkpoint.load_step",
        ),
        _seed_checkpoint_violation,
    ),
    (
        ("checkpoint.initial_load_model_weights_only", "checkpoint.initial_load_path"),
        _full_initial_load_without_path_violation,
    ),
    (
        (
            "checkpoint.exclude_from_loading",
            "checkpoint.load_step",
            "checkpoint.initial_load_path",
            "checkpoint.initial_load_model_weights_only",
        ),
        _exclude_from_loading_violation,
    ),
    (
        ("metrics.rank_0_only", "metrics.enable_tensorboard"),
        _all_rank_metrics_without_tensorboard_violation,
    ),
    (("evaluation.interval", "evaluation.dataset"), _evaluation_interval_without_dataset_violation),
    *(
        ((name, "float8.recipe_name"), _build_no_float8_recipe_violation_check(name))
        for name in (
            "float8.enable_fsdp_float8_all_gather",
            "float8.force_recompute_fp8_weight_in_bwd",
            "float8.emulate",
        )
    ),
    (
        ("float8.enable_fsdp_float8_all_gather", "float8.recipe_name"),
        _float8_all_gather_without_tensorwise_violation,
    ),
    (
        (
            "float8.precompute_float8_dynamic_scale_for_fsdp",
            "float8.enable_fsdp_float8_all_gather",
        ),
        _float8_scales_without_all_gather_violation,
    ),
    (
        ("float8.recipe_name", "training.tensor_parallel_degree"),
        _float8_with_tensor_parallel_violation,
    ),
    (
        (
            "optimizer.early_step_in_backward",
            "optimizer.name",
            "training.max_norm",
            "training.skip_nan_inf",
            "training.gradient_accumulation_steps",
        ),
        _early_step_in_backward_violation,
    ),
)
