"""How many CPU cores a process may use. Standard library only."""

import os


def count_cores_in_affinity_mask() -> int:
    """Number of CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
