"""Options that contradict each other are refused."""

import pytest

from flame_accel.config import ConfigError, parse
from tests.helpers.options import only_problem


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--training.context_len 4096 --training.varlen", "at most training.seq_len: 4096 > 2048"),
        ("--training.context_len 1024", "has no effect"),
        ("--training.steps 100", "(200) and the decay (10) must fit into training.steps (100)"),
        ("--training.warmup_steps 9001", "(9001) and the decay (1000) must fit"),
        ("--training.warmup_steps 10001 --optimizer.scheduler cosine", "must fit into"),
        ("--training.num_workers 0 --training.persistent_workers", "no workers to keep alive"),
        ("--checkpoint.load_step 5 --checkpoint.no_enable_checkpoint", "checkpoints are off"),
        ("--evaluation.interval 10", "nothing to validate on"),
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
