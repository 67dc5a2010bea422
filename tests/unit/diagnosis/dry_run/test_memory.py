"""The memory of a device: largest micro-batches, and the shares of sharded runs."""

import pytest

from flame_accel.diagnosis.dry_run.memory import (
    CONTEXT_BYTES,
    USABLE_SHARE,
    ModelSizes,
    add_states_and_shard,
    find_largest_micro_batch,
    why_memory_is_unknown,
)
from flame_accel.diagnosis.dry_run.rehearsal import PassMemory
from flame_accel.parallel.topology import Degrees, Topology

PARAMETERS = 10**9
SIZES = ModelSizes(total=PARAMETERS, optimizer_states=2 * PARAMETERS, largest_block=10**7)


def topology(engine: str, degrees: Degrees, *, offload: bool = False) -> Topology:
    return Topology(
        engine=engine,  # pyright: ignore
        world_size=degrees.dp_replicate * degrees.dp_shard * degrees.tp,
        degrees=degrees,
        offload=offload,
        param_dtype="bfloat16",
        reduce_dtype="float32",
    )


def passed(peak: int = 14 * 10**9) -> PassMemory:
    weights = gradients = 4 * PARAMETERS
    return PassMemory(weights, gradients, kept=9 * 10**9, loss=10**8, peak=peak)


@pytest.mark.parametrize("guess", [1, 3, 50])
@pytest.mark.parametrize("device_gib", [1, 10, 77])
def test_the_largest_micro_batch_fits_and_the_next_does_not(guess: int, device_gib: int) -> None:
    def total(rows: int) -> int:
        # a little less than linear, as chunks of tokens make it
        return int(2**29 + rows * 2**28 - rows**0.5 * 2**20)

    device = device_gib * 2**30
    largest = find_largest_micro_batch(total, device, guess=guess, most_rows=10**6)
    assert total(largest) <= USABLE_SHARE * device < total(largest + 1)


def test_few_estimates_are_made_and_none_of_huge_micro_batches() -> None:
    asked: list[int] = []

    def total(rows: int) -> int:
        asked.append(rows)
        return 2**30 + rows * 2**10

    largest = find_largest_micro_batch(total, 2**36, guess=10**5, most_rows=100)
    assert largest == pytest.approx(USABLE_SHARE * 2**26, rel=0.05)
    assert asked == [1, 100]


def test_none_fits_where_a_single_row_does_not() -> None:
    assert find_largest_micro_batch(lambda rows: rows * 2**31, 2**31, guess=4, most_rows=9) == 0


def test_one_device_holds_everything() -> None:
    memory = add_states_and_shard(passed(), SIZES, topology("single", Degrees(1, 1, 1)))
    assert memory.allocated == passed().peak + 8 * PARAMETERS
    assert memory.total == memory.allocated + CONTEXT_BYTES
    # gradients are whole when the optimizer steps, however small the activations are
    memory = add_states_and_shard(
        passed(peak=5 * 10**9), SIZES, topology("single", Degrees(1, 1, 1))
    )
    assert memory.allocated == 16 * PARAMETERS


def test_fsdp2_shards_weights_gradients_and_states() -> None:
    whole = add_states_and_shard(passed(), SIZES, topology("single", Degrees(1, 1, 1)))
    shares = add_states_and_shard(passed(), SIZES, topology("fsdp2", Degrees(1, 8, 1)))
    assert (shares.weights, shares.optimizer) == (whole.weights // 8, whole.optimizer // 8)
    # no bf16 copies of all weights
    assert shares.activations == whole.activations - 2 * PARAMETERS
    offloaded = topology("fsdp2", Degrees(1, 8, 1), offload=True)
    assert add_states_and_shard(passed(), SIZES, offloaded).weights == 0


def test_what_is_not_estimated_is_said() -> None:
    assert not why_memory_is_unknown(topology("fsdp2", Degrees(2, 4, 1)), "auto")
    for unknown in (topology("deepspeed", Degrees(1, 8, 1)), topology("fsdp2", Degrees(1, 2, 2))):
        assert why_memory_is_unknown(unknown, "auto")
    assert why_memory_is_unknown(topology("single", Degrees(1, 1, 1)), "torch")
