"""A sample is spread evenly over what it is taken from."""

from flame_accel.data.even_sampling import evenly_spread_indices


def test_a_sample_is_spread_evenly() -> None:
    assert evenly_spread_indices(10, 5) == [0, 2, 4, 6, 8]
    assert [*evenly_spread_indices(3, 5)] == [*evenly_spread_indices(3, 0)] == [0, 1, 2]
    assert not evenly_spread_indices(0, 5)


def test_all_of_many_takes_no_memory() -> None:
    assert len(evenly_spread_indices(2**40, 0)) == 2**40
