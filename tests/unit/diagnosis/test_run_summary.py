"""What a run logs about itself before its first step."""

import pytest

from flame_accel.config import TrainingConfig
from flame_accel.diagnosis.run_summary import advise_larger_micro_batch
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


GIB = 2**30


@pytest.mark.parametrize(
    ("peak", "accumulation", "advice"),
    [
        (50, 4, ""),
        (20, 1, "40 would fit"),
        (20, 4, "--training.batch_size 32 --training.gradient_accumulation_steps 1"),
        # 48 rows do not fit; neither do 6 micro-batches divide by 4 or 5
        (20, 6, "--training.batch_size 24 --training.gradient_accumulation_steps 2"),
    ],
)
def test_larger_micro_batches_are_advised_where_memory_has_room(
    peak: int, accumulation: int, advice: str
):
    training = TrainingConfig(batch_size=8, gradient_accumulation_steps=accumulation)
    text = advise_larger_micro_batch(
        training, memory=100 * GIB, peak=peak * GIB, lasting=5 * GIB // 2
    )
    assert advice in text
    assert bool(text) == bool(advice)
    assert ("same step" in text) == ("accumulation_steps" in advice)
