"""Values out of range, and required options."""

import pytest

from tests.helpers.options import config_error, only_problem


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--training.steps 0", "must be at least 1"),
        ("--training.seq_len 1", "must be at least 2"),
        ("--training.batch_size 0", "must be at least 1"),
        ("--training.context_len 1 --training.varlen", "must be at least 2"),
        ("--training.warmup_steps -1", "must be at least 0"),
        ("--training.gradient_accumulation_steps 0", "must be at least 1"),
        ("--training.prefetch_factor 0", "must be at least 1"),
        ("--training.num_workers -1", "must be at least 0"),
        ("--training.data_parallel_replicate_degree -1", "must be at least 1"),
        ("--training.data_parallel_shard_degree 0", "must be at least 1, or -1"),
        ("--training.max_norm -0.5", "must be at least 0"),
        ("--training.max_norm inf", "must be finite"),
        ("--training.seed -1", "must be from 0"),
        ("--optimizer.lr nan", "must be finite"),
        ("--optimizer.decay_ratio nan", "must be finite"),
        ("--optimizer.decay_ratio inf", "must be finite"),
        ("--optimizer.lr 0", "must be above 0"),
        ("--optimizer.beta2 1", "below 1"),
        ("--optimizer.min_lr_ratio 1.5", "must be from 0 to 1"),
        ("--optimizer.decay_ratio -0.1", "must be from 0 to 1"),
        ("--checkpoint.load_step -2", "must be at least -1"),
        ("--checkpoint.folder ../x", "must be a folder inside the run folder"),
        ("--checkpoint.folder hf", "must be a folder inside the run folder"),
        ("--checkpoint.folder tb", "is the same folder as metrics.save_tb_folder"),
        ("--metrics.log_freq 0", "must be at least 1"),
        ("--evaluation.sample_tokens -1", "must be at least 0"),
        ("--activation_checkpoint.selective_ac_option 0", "must be op or a whole number"),
        ("--job.dump_folder=", "must not be empty"),
        ("--training.data_probs 0.5,0 --training.dataset a,b", "must be numbers above 0"),
        ("--training.shuffle_block 0", "must be at least 1"),
        ("--evaluation.held_out_share 1", "must be between 0 and 1"),
        ("--hub.repo_id a/b/c", "must be NAMESPACE/NAME"),
        ("--hub.repo_id org/-x", "must be NAMESPACE/NAME"),
        ("--hub.repo_id org/a--b", "must be NAMESPACE/NAME"),
        ("--hub.repo_id org/model.git", "must be NAMESPACE/NAME"),
        ("--hub.repo_id org/m --hub.when never", "must be end, checkpoint or a whole number"),
        ("--hub.repo_id org/m --hub.when 0", "must be end, checkpoint or a whole number"),
        ("--hub.repo_id org/m --hub.revision a..b", "must be a name of a branch"),
        ("--hub.repo_id org/m --hub.revision refs/pr/1", "must be a name of a branch"),
        ("--hub.repo_id org/m --hub.tag={steps}", "must be a name of a branch"),
        ("--hub.license MIT", "must be a license of the Hub"),
        ("--hub.language english", "must be codes of two or three small letters"),
        ("--hub.base_model a/b/c", "must be a model on the Hub"),
        ("--hub.tags a,b\nc", "must be one line of text"),
        ("--hub.model_name a\nb", "must be one line of text"),
    ],
)
def test_a_value_out_of_range_is_refused(flags: str, rule: str) -> None:
    message = only_problem(*flags.split(" "))
    assert message.startswith("--")
    assert rule in message
    assert "\n    " in message


def test_required_options_name_the_quickstart() -> None:
    error = config_error([])
    assert [problem.where for problem in error.problems] == ["--model.config", "--training.dataset"]
    assert all("--job.config_file quickstart" in problem.remedy for problem in error.problems)
