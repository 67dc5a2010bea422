"""States: which ones merge into that of all lanes."""

import pytest

from flame_accel.data.loading.stream_state import merge_rank_states
from tests.helpers.numbered_batches import FIXED, build


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
