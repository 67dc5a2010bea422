"""When Python's cyclic garbage collector runs: at the same steps on all ranks.

A pause of one rank is a pause of all, and in a pause the GPU runs out of work. Most objects of a
process are those that its imports and its model have made; they live as long as the run, and are
put aside, so that a collection looks through the few that the steps have left.
"""

import gc


class GarbageCollection:
    """Collects every `frequency` steps instead of whenever Python would.

    Args:
        frequency: In steps; 0 leaves collection to Python.
    """

    def __init__(self, frequency: int) -> None:
        self.frequency = frequency
        self._frozen = False
        if frequency:
            gc.disable()

    def freeze_first_or_collect_if_due(self, step: int) -> None:
        """Collects if it is time; after the first step of a process, also puts all aside."""
        if not self.frequency:
            return
        if not self._frozen:
            gc.collect()
            gc.freeze()
            self._frozen = True
        elif step % self.frequency == 0:
            gc.collect()

    def unfreeze_and_leave_collector_disabled(self) -> None:
        """Gives back what was put aside; the collector stays disabled."""
        if self._frozen:
            gc.unfreeze()
