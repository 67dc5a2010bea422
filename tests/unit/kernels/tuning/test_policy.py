"""Kernels are tuned where a run is long enough to earn it, or where the option says so."""

import pytest

from flame_accel.kernels.tuning.policy import (
    BREAK_EVEN_SECONDS,
    SUSTAINED_FLOPS,
    UNKNOWN_FLOPS_PER_TOKEN,
    decide_tuning,
)

FLOPS_PER_TOKEN = 1e9
TOKENS_PER_SECOND = SUSTAINED_FLOPS / FLOPS_PER_TOKEN
BREAK_EVEN_TOKENS = BREAK_EVEN_SECONDS * TOKENS_PER_SECOND


@pytest.mark.parametrize(
    "option, share, tunes",
    [
        ("auto", 0.99, False),
        ("auto", 1.01, True),
        ("always", 0.01, True),
        ("never", 100.0, False),
    ],
)
def test_a_run_tunes_from_the_break_even_on_unless_the_option_says_otherwise(option, share, tunes):
    decision = decide_tuning(option, FLOPS_PER_TOKEN, share * BREAK_EVEN_TOKENS)
    assert decision.tunes == tunes
    other = "never" if tunes else "always"
    assert f"--model.tune_kernels {other}" in decision.message


def test_the_quickstart_does_not_tune_and_a_training_run_of_a_day_does():
    assert not decide_tuning("auto", 6e6, 500 * 2048).tunes
    # 340M parameters, 10,000 steps of 65,536 tokens
    assert decide_tuning("auto", 2.2e9, 10_000 * 65_536).tunes


def test_operations_that_are_unknown_are_taken_for_those_of_a_model_of_usual_size():
    tokens = BREAK_EVEN_SECONDS * SUSTAINED_FLOPS / UNKNOWN_FLOPS_PER_TOKEN
    assert decide_tuning("auto", None, 1.01 * tokens).tunes
    assert not decide_tuning("auto", None, 0.99 * tokens).tunes


@pytest.mark.parametrize(
    "seconds, told",
    [(0.03, "about a second"), (60, "60 seconds"), (600, "10 minutes"), (10_000, "2.8 hours")],
)
def test_the_message_tells_the_length_of_the_run(seconds, told):
    assert told in decide_tuning("auto", FLOPS_PER_TOKEN, seconds * TOKENS_PER_SECOND).message
