"""States: which ones merge, which are refused, and which accumulation keeps the rows of a step."""

import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.loading.stream_state import accumulation_for_rows, merge_rank_states
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


def test_states_of_different_steps_or_too_few_ranks_do_not_merge() -> None:
    ranks = [build(FIXED, rank=r, world_size=2) for r in range(2)]
    next(iter(ranks[0]))
    with pytest.raises(ValueError, match="disagree"):
        merge_rank_states([rank.state_dict() for rank in ranks])
    with pytest.raises(ValueError, match="8 lanes for 16 rows"):
        merge_rank_states([ranks[0].state_dict()])
    with pytest.raises(ValueError, match="lane 0 is missing"):
        merge_rank_states([ranks[1].state_dict()])
    with pytest.raises(ValueError, match="merge the states of all ranks first"):
        build(FIXED, rank=1, world_size=2, state=ranks[0].state_dict())
