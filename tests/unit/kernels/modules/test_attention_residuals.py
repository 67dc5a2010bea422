"""Attention over residual sources."""

from fla.ops.attnres.naive import naive_attnres

from flame_accel.kernels.modules import (
    attention_residuals,
)
from tests.helpers.gradients import assert_same_results, randn_each


def test_attnres_equals_reference():
    query, weight, output_weight, *residuals = randn_each((8,), (8,), (8,), (2, 7, 8), (2, 7, 8))
    for output in (None, output_weight):
        assert_same_results(
            lambda q, w, *r, o=output: attention_residuals.fused_attnres(
                q, r, w, o, return_weights=True
            ),
            lambda q, w, *r, o=output: naive_attnres(q, r, w, o, return_weights=True),
            [query, weight, *residuals],
        )
