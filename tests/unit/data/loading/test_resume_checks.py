"""What another stream, format or number of rows is told when it resumes a position in the data."""

import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.loading.resume_checks import accumulation_for_rows
from tests.helpers.numbered_batches import FIXED, all_ranks, build


def test_a_state_of_another_stream_is_refused_by_name() -> None:
    _, state = all_ranks(FIXED, 2, identity={"training.seed": 1, "training.seq_len": 16})
    with pytest.raises(
        UserError, match=r"training\.seq_len is 32, the checkpoint has 16"
    ) as problem:
        build(FIXED, state=state, identity={"training.seed": 2, "training.seq_len": 32})
    assert "training.seed is 2, the checkpoint has 1" in str(problem.value)


def test_a_state_of_another_format_is_refused() -> None:
    _, state = all_ranks(FIXED, 1)
    for version in (1, 99):
        with pytest.raises(UserError, match=f"has format {version}, this version reads format 2"):
            build(FIXED, state=state | {"format": version})


def test_other_rows_per_step_are_refused_with_the_accumulation_that_works() -> None:
    _, state = all_ranks(FIXED, 1)
    with pytest.raises(UserError, match=r"use training\.gradient_accumulation_steps 2"):
        build(FIXED, num_lanes=8, world_size=2, accumulation=1, state=state)


def test_the_accumulation_follows_the_ranks() -> None:
    sizes = [
        accumulation_for_rows(48, micro_batch_size=4, world_size=n) for n in (1, 2, 3, 4, 6, 12)
    ]
    assert sizes == [12, 6, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("micro_batch_size", "world_size", "remedy"),
    [
        (4, 5, "that divides it: 1, 2, 3, 4, 6, 8, 12, 16, 24, 48"),
        (5, 4, "can be 1 x 12, 2 x 6, 3 x 4, 4 x 3, 6 x 2, 12 x 1"),
        (64, 1, "can be 1 x 48"),
    ],
    ids=["ranks", "batch size", "too large"],
)
def test_an_impossible_split_names_the_sizes_that_work(
    micro_batch_size: int, world_size: int, remedy: str
) -> None:
    with pytest.raises(UserError, match=remedy):
        accumulation_for_rows(48, micro_batch_size=micro_batch_size, world_size=world_size)
