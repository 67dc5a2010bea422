"""The picture of the loss: the same bytes for the same records, and none without a loss."""

import io
import math

import pytest

from flame_accel.hub.loss_curve import (
    DOTS_PER_INCH,
    HEIGHT_INCHES,
    WIDTH_INCHES,
    draw_png_or_none_if_no_finite_loss,
)

RECORDS = [
    {"step": step, "train/loss": 5.0 / step, "eval/loss": 6.0 / step} for step in range(1, 9)
]


def test_it_is_a_picture_that_depends_on_nothing_but_the_losses():
    picture = draw_png_or_none_if_no_finite_loss(RECORDS)
    assert picture == draw_png_or_none_if_no_finite_loss(
        [record | {"time/step_seconds": 3.0} for record in RECORDS]
    )
    assert picture != draw_png_or_none_if_no_finite_loss(
        [record | {"train/loss": 1.0} for record in RECORDS]
    )
    assert picture != draw_png_or_none_if_no_finite_loss(
        [{**record, "eval/loss": math.nan} for record in RECORDS]
    )
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(picture or b""), format="png")
    assert pixels.shape[:2] == (HEIGHT_INCHES * DOTS_PER_INCH, WIDTH_INCHES * DOTS_PER_INCH)
    # both curves are there, in their colours
    blue, red = pixels[..., 2] - pixels[..., 0], pixels[..., 0] - pixels[..., 2]
    assert (blue > 0.5).sum() > 100 and (red > 0.5).sum() > 100


@pytest.mark.parametrize(
    "records", [[], [{"step": 1}], [{"step": 1, "train/loss": math.nan}]], ids=str
)
def test_without_a_loss_there_is_no_picture(records: list[dict[str, float]]) -> None:
    assert draw_png_or_none_if_no_finite_loss(records) is None


def test_one_step_and_a_loss_of_zero_are_drawn():
    assert draw_png_or_none_if_no_finite_loss(RECORDS[:1])
    assert draw_png_or_none_if_no_finite_loss([*RECORDS, {"step": 9, "train/loss": 0.0}])
