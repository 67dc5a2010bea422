"""What a run logs about itself before its first step."""

from tests.helpers.runs import SHORT_RUN, read_log


def test_the_log_says_what_a_step_consists_of(train_here, flags, tmp_path, corpus):
    train_here(flags(**SHORT_RUN, **{"training.gradient_accumulation_steps": 2}))
    log = read_log(tmp_path / "run")
    assert "model: gla, " in log and " parameters" in log
    assert f"data: {corpus}, 40 documents" in log
    assert "4 rows x 1 ranks x 2 micro-batches x 64 tokens = 512 tokens; 2 steps" in log
    assert "residual stream" not in log


def test_the_log_says_before_the_first_step_that_blocks_pass_on_bf16(
    train_here, flags, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train_here(flags(**SHORT_RUN, **{"training.residual_dtype": "bfloat16"}))
    log = read_log(tmp_path / "run")
    assert 0 < log.index("residual stream: bfloat16; weights: float32") < log.index("step 1/2")
