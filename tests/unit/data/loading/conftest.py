"""The steps that every split of the lanes must give."""

import pytest

from tests.helpers.numbered_batches import FIXED, STEPS, VARLEN, Step, all_ranks


@pytest.fixture(scope="module")
def streams() -> dict[bool, list[Step]]:
    return {packing.varlen: all_ranks(packing, STEPS)[0] for packing in (FIXED, VARLEN)}
