"""Options that contradict each other are refused."""

import pytest

from flame_accel.config import ConfigError, parse
from tests.helpers.optimizers import STEP_IN_BACKWARD
from tests.helpers.options import only_problem, parse_flags, refusal


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--training.context_len 4096 --training.varlen", "at most training.seq_len: 4096 > 2048"),
        ("--training.context_len 1024", "has no effect"),
        (
            "--training.steps 100 --training.warmup_steps=200",
            "(200) and the decay (10) must fit into training.steps (100)",
        ),
        ("--training.warmup_steps 9001", "(9001) and the decay (1000) must fit"),
        ("--training.warmup_steps 10001 --optimizer.scheduler cosine", "must fit into"),
        ("--training.num_workers 0 --training.persistent_workers", "no workers to keep alive"),
        ("--checkpoint.load_step 5 --checkpoint.no_enable_checkpoint", "checkpoints are off"),
        ("--evaluation.interval 10", "nothing to validate on"),
        ("--training.max_rewinds 1 --training.max_consecutive_skips 0", "too many updates in a"),
        ("--training.max_rewinds 1 --training.no_skip_nan_inf", "too many updates in a row"),
        ("--training.max_rewinds 1 --checkpoint.no_enable_checkpoint", "goes back to a checkpoint"),
        ("--training.packing best_fit", "documents are kept apart"),
    ],
)
def test_options_that_contradict_each_other_are_refused(flags: str, rule: str) -> None:
    message = only_problem(*flags.split(" "))
    assert message.startswith("--")
    assert rule in message
    assert "\n    " in message


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ("exclude_from_loading=optimiser", "must be of optimizer, lr_scheduler"),
        ("exclude_from_loading=optimizer", "every start would leave them out"),
        ("exclude_from_loading=optimizer initial_load_path=a/b", "only the weights are loaded"),
        ("exclude_from_loading=train_state load_step=4", "cannot drop the step"),
        ("exclude_from_loading=lr_scheduler load_step=4", "a function of the step"),
        ("no_initial_load_model_weights_only", "there is no other run"),
        ("create_seed_checkpoint no_enable_checkpoint", "checkpoints are off"),
        ("create_seed_checkpoint load_step=4", "so there is none to load"),
        ("initial_load_path=./nowhere", "does not exist"),
    ],
)
def test_checkpoint_options_that_contradict_each_other_are_refused(options, rule):
    argv = [f"--checkpoint.{option}" for option in options.split()]
    with pytest.raises(ConfigError, match=rule):
        parse(["--model.config=a/b", "--training.dataset=a/b", *argv])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--float8.emulate"], "float8.recipe_name is none"),
        (["--float8.enable_fsdp_float8_all_gather"], "float8.recipe_name is none"),
        (["--float8.force_recompute_fp8_weight_in_bwd"], "float8.recipe_name is none"),
        (
            ["--float8.recipe_name", "rowwise", "--float8.enable_fsdp_float8_all_gather"],
            "needs one scale per weight",
        ),
        (
            [
                *("--float8.recipe_name", "tensorwise"),
                "--float8.precompute_float8_dynamic_scale_for_fsdp",
            ],
            "needs weights that are gathered in float8",
        ),
        (
            ["--float8.recipe_name", "tensorwise", "--training.tensor_parallel_degree", "2"],
            "not supported with tensor parallelism",
        ),
        (["--float8.recipe_name", "columnwise"], "must be one of tensorwise"),
        (["--model.converters", "float4"], "must be one of float8"),
    ],
)
def test_float8_options_that_contradict_each_other_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse_flags(*flags)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"optimizer.name": "Muon"}, "--optimizer.name AdamW"),
        ({"training.max_norm": 1}, "--training.max_norm 0"),
        ({"training.skip_nan_inf": True}, "--training.no_skip_nan_inf"),
        ({"training.gradient_accumulation_steps": 2}, "--training.gradient_accumulation_steps 1"),
    ],
)
def test_options_that_stepping_in_backward_needs_are_named(flags, change, remedy):
    parse(flags(**STEP_IN_BACKWARD))
    with pytest.raises(ConfigError) as raised:
        parse(flags(**STEP_IN_BACKWARD | change))
    assert f"Add {remedy}, or remove optimizer.early_step_in_backward" in str(raised.value)


def test_long_contexts_are_longer_than_those_of_training():
    short = refusal("--training.seq_len=64", "--evaluation.max_context=63")
    assert "is shorter than the contexts of training (64)" in short
    assert "--evaluation.max_context 512" in short
    parse_flags("--training.seq_len=64", "--evaluation.max_context=64")
    varlen = ("--training.varlen", "--training.context_len=32", "--training.seq_len=64")
    parse_flags(*varlen, "--evaluation.max_context=32")
    assert "is for long rows" in refusal("--evaluation.carry_state")
