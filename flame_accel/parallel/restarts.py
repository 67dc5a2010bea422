"""How the processes of a restarted run find each other and not those of the attempt before.

The launcher's store, through which they exchange addresses, outlives a restart by `--max_restarts`
under accelerate's rendezvous: without a prefix of its own, an attempt would connect to the
addresses of processes that are gone, and hang.
"""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

SCHEME = "restarted"
RESTART_COUNT = "TORCHELASTIC_RESTART_COUNT"


def init_method_if_restarted() -> str | None:
    """The `init_method` of the process group of a restarted run; None for a first attempt."""
    return f"{SCHEME}://" if os.environ.get(RESTART_COUNT, "0") != "0" else None


def _rendezvous_of_attempt(url: str, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """The store, rank and number of processes as the launcher's variables give them."""
    launched = f"env://?{urlsplit(url).query}"
    store, rank, world_size = next(iter(rendezvous(launched, **options)))
    yield PrefixStore(f"attempt-{os.environ[RESTART_COUNT]}", store), rank, world_size


register_rendezvous_handler(SCHEME, _rendezvous_of_attempt)
