"""Options that contradict each other, or have no effect without another.

Each check looks at a whole `Config` and says the rule that is broken and the remedy. Values that
are wrong alone are in `validation`.
"""

from collections.abc import Callable, Collection

from flame_accel.config.root import Config
from flame_accel.config.schema import value_of

Check = Callable[[Config, Collection[str]], tuple[str, str] | None]
"""From a configuration and the names that the user set to a rule and a remedy, if it is broken."""


def _context(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    context_len, seq_len = config.training.context_len, config.training.seq_len
    if context_len is None or context_len == seq_len:
        return None
    if context_len > seq_len:
        rule = f"must be at most training.seq_len: {context_len} > {seq_len}"
        return rule, "Lower training.context_len or raise training.seq_len."
    if not config.training.varlen:
        rule = "has no effect on rows in which documents follow each other"
        return rule, "Add --training.varlen, or remove training.context_len."
    return None


def _packing(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    if config.training.packing == "sequential" or config.training.varlen:
        return None
    rule = "leaves room in rows, which only works where documents are kept apart"
    return rule, "Add --training.varlen, or remove training.packing."


def _schedule(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    steps, warmup = config.training.steps, config.training.warmup_steps
    wsd = config.optimizer.scheduler == "wsd"
    decay = round(config.optimizer.decay_ratio * steps) if wsd else 0
    if warmup + decay <= steps:
        return None
    decaying = f" and the decay ({decay})" if wsd else ""
    rule = f"training.warmup_steps ({warmup}){decaying} must fit into training.steps ({steps})"
    return rule, f"Give --training.warmup_steps {steps - decay} or fewer, or more steps."


def _workers(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    if not config.training.persistent_workers or config.training.num_workers > 0:
        return None
    rule = "there are no workers to keep alive (training.num_workers is 0)"
    return rule, "Raise training.num_workers, or remove training.persistent_workers."


_CHECKPOINTS_OFF = "checkpoints are off (checkpoint.enable_checkpoint is false)"


def _loading(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    if config.checkpoint.load_step < 0 or config.checkpoint.enable_checkpoint:
        return None
    return _CHECKPOINTS_OFF, "Add --checkpoint.enable_checkpoint, or remove checkpoint.load_step."


def _seeding(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    checkpoint = config.checkpoint
    if not checkpoint.create_seed_checkpoint:
        return None
    if not checkpoint.enable_checkpoint:
        remedy = "Add --checkpoint.enable_checkpoint, or remove checkpoint.create_seed_checkpoint."
        return _CHECKPOINTS_OFF, remedy
    if checkpoint.load_step >= 0:
        rule = "makes the first checkpoint of a run; there is none to load yet"
        return rule, "Remove checkpoint.load_step, or checkpoint.create_seed_checkpoint."
    return None


def _initial_parts(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    checkpoint = config.checkpoint
    if checkpoint.initial_load_model_weights_only or checkpoint.initial_load_path is not None:
        return None
    rule = "there is no other run to load from (checkpoint.initial_load_path is none)"
    remedy = "Name its checkpoint, or remove checkpoint.no_initial_load_model_weights_only."
    return rule, remedy


def _excluding(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    checkpoint = config.checkpoint
    excluded = checkpoint.exclude_from_loading
    if not excluded:
        return None
    if checkpoint.load_step >= 0:
        if "train_state" in excluded:
            rule = "a run cannot forget the step of its own checkpoint"
            remedy = (
                "Start another job.dump_folder with checkpoint.initial_load_path and"
                " checkpoint.no_initial_load_model_weights_only."
            )
            return rule, remedy
    elif checkpoint.initial_load_path is None:
        rule = "every start would leave them out, also one after an interruption"
        return rule, "Name the one checkpoint that is meant with checkpoint.load_step."
    elif checkpoint.initial_load_model_weights_only:
        rule = "nothing but the weights is loaded (checkpoint.initial_load_model_weights_only)"
        return rule, "Add --checkpoint.no_initial_load_model_weights_only, or remove the option."
    if "lr_scheduler" in excluded and "train_state" not in excluded:
        rule = "the learning rate is a function of the step, which is part of train_state"
        return rule, "Leave out train_state too, or remove lr_scheduler."
    return None


def _every_rank(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    if config.metrics.rank_0_only or config.metrics.enable_tensorboard:
        return None
    rule = "TensorBoard is off (metrics.enable_tensorboard is false)"
    return rule, "Add --metrics.enable_tensorboard, or remove metrics.rank_0_only."


def _validating(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    # a none that was asked for turns validation off, whatever a run file says of its interval
    if (
        config.evaluation.interval == 0
        or config.evaluation.dataset
        or "evaluation.dataset" in given
    ):
        return None
    rule = "there is nothing to validate on (evaluation.dataset is none)"
    return rule, "Name the validation data with evaluation.dataset."


def _early_step(config: Config, given: Collection[str]) -> tuple[str, str] | None:
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
    rule = "updates each parameter before the gradients of all are known and summed up"
    return rule, f"Add {', '.join(missing)}, or remove optimizer.early_step_in_backward."


def _float8_alone(name: str) -> Check:
    def check(config: Config, given: Collection[str]) -> tuple[str, str] | None:
        if not value_of(config, name) or config.float8.recipe_name is not None:
            return None
        rule = "has no effect: float8.recipe_name is none, which leaves 8-bit floats off"
        return rule, f"Give --float8.recipe_name tensorwise, or remove {name}."

    return check


def _float8_gathering(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    float8 = config.float8
    if not float8.enable_fsdp_float8_all_gather or float8.recipe_name in (None, "tensorwise"):
        return None
    rule = f"needs one scale for each weight, and {float8.recipe_name} has one for each row"
    return rule, "Give --float8.recipe_name tensorwise, or remove the option."


def _float8_scales(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    float8 = config.float8
    if not float8.precompute_float8_dynamic_scale_for_fsdp or float8.enable_fsdp_float8_all_gather:
        return None
    rule = "needs weights that are gathered in 8 bits"
    return rule, "Add --float8.enable_fsdp_float8_all_gather, or remove the option."


def _float8_split(config: Config, given: Collection[str]) -> tuple[str, str] | None:
    if config.float8.recipe_name is None or config.training.tensor_parallel_degree == 1:
        return None
    rule = "is not supported with tensor parallelism"
    return rule, "Remove float8.recipe_name, or shard instead of splitting."


# the options that a check relates, the one to blame first, and the rule and remedy if it fails
RELATIONS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("training.context_len", "training.seq_len", "training.varlen"), _context),
    (("training.packing", "training.varlen"), _packing),
    (
        (
            "training.warmup_steps",
            "training.steps",
            "optimizer.decay_ratio",
            "optimizer.scheduler",
        ),
        _schedule,
    ),
    (("training.persistent_workers", "training.num_workers"), _workers),
    (("checkpoint.load_step", "checkpoint.enable_checkpoint"), _loading),
    (
        (
            "checkpoint.create_seed_checkpoint",
            "checkpoint.enable_checkpoint",
            "checkpoint.load_step",
        ),
        _seeding,
    ),
    (
        ("checkpoint.initial_load_model_weights_only", "checkpoint.initial_load_path"),
        _initial_parts,
    ),
    (
        (
            "checkpoint.exclude_from_loading",
            "checkpoint.load_step",
            "checkpoint.initial_load_path",
            "checkpoint.initial_load_model_weights_only",
        ),
        _excluding,
    ),
    (("metrics.rank_0_only", "metrics.enable_tensorboard"), _every_rank),
    (("evaluation.interval", "evaluation.dataset"), _validating),
    *(
        ((name, "float8.recipe_name"), _float8_alone(name))
        for name in (
            "float8.enable_fsdp_float8_all_gather",
            "float8.force_recompute_fp8_weight_in_bwd",
            "float8.emulate",
        )
    ),
    (("float8.enable_fsdp_float8_all_gather", "float8.recipe_name"), _float8_gathering),
    (
        (
            "float8.precompute_float8_dynamic_scale_for_fsdp",
            "float8.enable_fsdp_float8_all_gather",
        ),
        _float8_scales,
    ),
    (("float8.recipe_name", "training.tensor_parallel_degree"), _float8_split),
    (
        (
            "optimizer.early_step_in_backward",
            "optimizer.name",
            "training.max_norm",
            "training.skip_nan_inf",
            "training.gradient_accumulation_steps",
        ),
        _early_step,
    ),
)
