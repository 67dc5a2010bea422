"""Metrics from sums: the same however these are split."""

import math

from flame_accel.evaluation.metrics import LanguageModelingMetricFromSums


def test_the_figures_follow_from_the_sums_however_these_are_split():
    whole = LanguageModelingMetricFromSums().compute(
        nats=[30.0], correct=[4], targets=[10], bytes=[20]
    )
    split = LanguageModelingMetricFromSums().compute(
        nats=[12.0, 18.0], correct=[1, 3], targets=[4, 6], bytes=[5, 15]
    )
    assert whole == split
    assert whole == {
        "loss": 3.0,
        "perplexity": math.exp(3.0),
        "bits_per_byte": 30 / math.log(2) / 20,
        "accuracy": 0.4,
    }


def test_a_hopeless_loss_has_no_finite_perplexity():
    figures = LanguageModelingMetricFromSums().compute(
        nats=[1e6], correct=[0], targets=[1], bytes=[1]
    )
    assert figures is not None and figures["perplexity"] == math.inf
