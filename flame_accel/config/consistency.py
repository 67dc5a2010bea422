"""Options that contradict each other, or that have no effect without another.

Each function looks at a whole `Config` and yields what a group of options breaks together, the most
likely mistake first. Values that are wrong by themselves are in `validation`.
"""

from collections.abc import Collection, Iterator

from flame_accel.config.errors import BrokenRule
from flame_accel.config.schema import Config, option_value

_CHECKPOINTS_OFF = "checkpoints are off (checkpoint.enable_checkpoint is false)"


def find_contradictions(config: Config, given_options: Collection[str]) -> Iterator[BrokenRule]:
    """The rules that options break together.

    Args:
        config: The values of all options.
        given_options: Names of the options that the user set.
    """
    yield from _find_length_packing_warmup_and_worker_contradictions(config)
    yield from _find_load_step_seed_and_initial_load_contradictions(config)
    yield from _find_metric_and_validation_contradictions(config, given_options)
    yield from _find_float8_contradictions(config)
    yield from _find_step_in_backward_contradictions(config)
    yield from _find_rewind_contradictions(config)


def _find_length_packing_warmup_and_worker_contradictions(config: Config) -> Iterator[BrokenRule]:
    training, optimizer = config.training, config.optimizer
    context_len, seq_len = training.context_len or training.seq_len, training.seq_len
    options = ("training.context_len", "training.seq_len", "training.varlen")
    if context_len > seq_len:
        yield BrokenRule(
            options=options,
            rule=f"must be at most training.seq_len: {context_len} > {seq_len}",
            remedy="Lower training.context_len or raise training.seq_len.",
        )
    elif context_len < seq_len and not training.varlen:
        yield BrokenRule(
            options=options,
            rule="has no effect unless documents are kept apart",
            remedy="Add --training.varlen, or remove training.context_len.",
        )
    if training.packing != "sequential" and not training.varlen:
        yield BrokenRule(
            options=("training.packing", "training.varlen"),
            rule="pads rows, which only works if documents are kept apart",
            remedy="Add --training.varlen, or remove training.packing.",
        )
    steps, warmup = training.steps, training.warmup_steps
    wsd = optimizer.scheduler == "wsd"
    decay = round(optimizer.decay_ratio * steps) if wsd else 0
    if warmup + decay > steps:
        decaying = f" and the decay ({decay})" if wsd else ""
        yield BrokenRule(
            options=(
                *("training.warmup_steps", "training.steps"),
                *("optimizer.decay_ratio", "optimizer.scheduler"),
            ),
            rule=f"training.warmup_steps ({warmup}){decaying} must fit into training.steps "
            f"({steps})",
            remedy=f"Set --training.warmup_steps to at most {steps - decay}, or raise "
            "training.steps.",
        )
    if training.persistent_workers and training.num_workers == 0:
        yield BrokenRule(
            options=("training.persistent_workers", "training.num_workers"),
            rule="there are no workers to keep alive (training.num_workers is 0)",
            remedy="Raise training.num_workers, or remove training.persistent_workers.",
        )


def _find_load_step_seed_and_initial_load_contradictions(config: Config) -> Iterator[BrokenRule]:
    checkpoint = config.checkpoint
    if checkpoint.load_step >= 0 and not checkpoint.enable_checkpoint:
        yield BrokenRule(
            options=("checkpoint.load_step", "checkpoint.enable_checkpoint"),
            rule=_CHECKPOINTS_OFF,
            remedy="Add --checkpoint.enable_checkpoint, or remove checkpoint.load_step.",
        )
    if checkpoint.create_seed_checkpoint:
        options = (
            *("checkpoint.create_seed_checkpoint", "checkpoint.enable_checkpoint"),
            "checkpoint.load_step",
        )
        if not checkpoint.enable_checkpoint:
            yield BrokenRule(
                options=options,
                rule=_CHECKPOINTS_OFF,
                remedy="Add --checkpoint.enable_checkpoint, or remove "
                "checkpoint.create_seed_checkpoint.",
            )
        elif checkpoint.load_step >= 0:
            yield BrokenRule(
                options=options,
                rule="makes the first checkpoint of a run, so there is none to load",
                remedy="Remove checkpoint.load_step, or checkpoint.create_seed_checkpoint.",
            )
    if not checkpoint.initial_load_model_weights_only and checkpoint.initial_load_path is None:
        yield BrokenRule(
            options=("checkpoint.initial_load_model_weights_only", "checkpoint.initial_load_path"),
            rule="there is no other run to load from (checkpoint.initial_load_path is none)",
            remedy="Name its checkpoint, or remove checkpoint.no_initial_load_model_weights_only.",
        )
    if checkpoint.exclude_from_loading:
        yield from _find_exclude_from_loading_contradiction(config)


def _find_exclude_from_loading_contradiction(config: Config) -> Iterator[BrokenRule]:
    """What speaks against leaving out parts of a checkpoint; at most one rule."""
    checkpoint, excluded = config.checkpoint, config.checkpoint.exclude_from_loading
    if checkpoint.load_step >= 0 and "train_state" in excluded:
        rule = "a run cannot drop the step of its own checkpoint"
        remedy = (
            "Start another job.dump_folder with checkpoint.initial_load_path and"
            " checkpoint.no_initial_load_model_weights_only."
        )
    elif checkpoint.load_step < 0 and checkpoint.initial_load_path is None:
        rule = "every start would leave them out, also a restart after an interruption"
        remedy = "Name the checkpoint that is meant with checkpoint.load_step."
    elif checkpoint.load_step < 0 and checkpoint.initial_load_model_weights_only:
        rule = "only the weights are loaded (checkpoint.initial_load_model_weights_only)"
        remedy = "Add --checkpoint.no_initial_load_model_weights_only, or remove the option."
    elif "lr_scheduler" in excluded and "train_state" not in excluded:
        rule = "the learning rate is a function of the step, which is part of train_state"
        remedy = "Leave out train_state too, or remove lr_scheduler."
    else:
        return
    options = ("exclude_from_loading", "load_step", "initial_load_path")
    names = (*options, "initial_load_model_weights_only")
    options = tuple(f"checkpoint.{name}" for name in names)
    yield BrokenRule(options=options, rule=rule, remedy=remedy)


def _find_metric_and_validation_contradictions(
    config: Config, given_options: Collection[str]
) -> Iterator[BrokenRule]:
    metrics, evaluation = config.metrics, config.evaluation
    has_tensorboard = metrics.enable_tensorboard or "tensorboard" in metrics.trackers
    if not (metrics.rank_0_only or has_tensorboard):
        yield BrokenRule(
            options=("metrics.rank_0_only", "metrics.enable_tensorboard"),
            rule="TensorBoard is off (metrics.enable_tensorboard is false)",
            remedy="Add --metrics.enable_tensorboard, or remove metrics.rank_0_only.",
        )
    trained_length = config.training.context_len or config.training.seq_len
    if 0 < evaluation.max_context < trained_length:
        yield BrokenRule(
            options=("evaluation.max_context", "training.seq_len", "training.context_len"),
            rule=f"is shorter than the contexts of training ({trained_length})",
            remedy=f"Set --evaluation.max_context {8 * trained_length}, or 0.",
        )
    if evaluation.carry_state and not evaluation.max_context:
        yield BrokenRule(
            options=("evaluation.carry_state", "evaluation.max_context"),
            rule="is for long rows (evaluation.max_context is 0)",
            remedy=f"Add --evaluation.max_context {8 * trained_length}, or remove the option.",
        )
    # an explicit none turns validation off, even if a run file sets the interval
    turned_off = "evaluation.dataset" in given_options
    evaluates = evaluation.dataset or evaluation.sets or evaluation.prompts
    if evaluation.interval and not (evaluates or turned_off):
        yield BrokenRule(
            options=("evaluation.interval", "evaluation.dataset", "evaluation.sets"),
            rule="there is nothing to validate on (evaluation.dataset is none)",
            remedy="Name the validation data with evaluation.dataset or evaluation.sets.",
        )


def _find_float8_contradictions(config: Config) -> Iterator[BrokenRule]:
    recipe, gathers = config.float8.recipe_name, config.float8.enable_fsdp_float8_all_gather
    for name in (
        "float8.enable_fsdp_float8_all_gather",
        "float8.force_recompute_fp8_weight_in_bwd",
        "float8.emulate",
    ):
        if recipe is None and option_value(config, name):
            yield BrokenRule(
                options=(name, "float8.recipe_name"),
                rule="has no effect: float8.recipe_name is none, which turns float8 off",
                remedy=f"Set --float8.recipe_name tensorwise, or remove {name}.",
            )
    if gathers and recipe not in (None, "tensorwise"):
        yield BrokenRule(
            options=("float8.enable_fsdp_float8_all_gather", "float8.recipe_name"),
            rule=f"needs one scale per weight, but {recipe} has one per row",
            remedy="Set --float8.recipe_name tensorwise, or remove the option.",
        )
    if config.float8.precompute_float8_dynamic_scale_for_fsdp and not gathers:
        yield BrokenRule(
            options=(
                "float8.precompute_float8_dynamic_scale_for_fsdp",
                "float8.enable_fsdp_float8_all_gather",
            ),
            rule="needs weights that are gathered in float8",
            remedy="Add --float8.enable_fsdp_float8_all_gather, or remove the option.",
        )
    if recipe is not None and config.training.tensor_parallel_degree > 1:
        yield BrokenRule(
            options=("float8.recipe_name", "training.tensor_parallel_degree"),
            rule="is not supported with tensor parallelism",
            remedy="Remove float8.recipe_name, or use training.data_parallel_shard_degree instead.",
        )


def _find_step_in_backward_contradictions(config: Config) -> Iterator[BrokenRule]:
    """Options that need all gradients of a step before its first parameter is updated."""
    training = config.training
    needs = {
        "--optimizer.name AdamW": config.optimizer.name == "Muon",
        "--training.max_norm 0": training.max_norm > 0,
        "--training.no_skip_nan_inf": training.skip_nan_inf,
        "--training.skip_spike_sigma 0": training.skip_spike_sigma > 0,
        "--training.gradient_accumulation_steps 1": training.gradient_accumulation_steps > 1,
    }
    missing = [flag for flag, missed in needs.items() if missed]
    if config.optimizer.early_step_in_backward and missing:
        yield BrokenRule(
            options=(
                *("optimizer.early_step_in_backward", "optimizer.name", "training.max_norm"),
                *("training.skip_nan_inf", "training.skip_spike_sigma"),
                "training.gradient_accumulation_steps",
            ),
            rule="updates each parameter before all gradients are known and summed",
            remedy=f"Add {', '.join(missing)}, or remove optimizer.early_step_in_backward.",
        )


def _find_rewind_contradictions(config: Config) -> Iterator[BrokenRule]:
    training = config.training
    if not training.max_rewinds:
        return
    needs = {
        "--training.max_consecutive_skips 10": not training.max_consecutive_skips,
        "--training.skip_nan_inf": not (training.skip_nan_inf or training.skip_spike_sigma),
        "--checkpoint.enable_checkpoint": not config.checkpoint.enable_checkpoint,
        # they are those of the weights that are left
        "--float8.no_precompute_float8_dynamic_scale_for_fsdp": (
            config.float8.precompute_float8_dynamic_scale_for_fsdp
        ),
    }
    missing = [flag for flag, missed in needs.items() if missed]
    if missing:
        yield BrokenRule(
            options=(
                *("training.max_rewinds", "training.max_consecutive_skips"),
                *("training.skip_nan_inf", "training.skip_spike_sigma"),
                *("checkpoint.enable_checkpoint",),
                "float8.precompute_float8_dynamic_scale_for_fsdp",
            ),
            rule="goes back to a checkpoint when too many updates in a row are skipped",
            remedy=f"Add {', '.join(missing)}, or remove training.max_rewinds.",
        )
