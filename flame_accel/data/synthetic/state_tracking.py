"""Documents of modular addition and parity; see `config.synthetic_tasks.ModularAddition`."""

import numpy as np

from flame_accel.config.synthetic_tasks import ModularAddition
from flame_accel.data.documents import Document


def make_modular_addition(task: ModularAddition, rng: np.random.Generator) -> Document:
    """Numbers, the marker, and their sum modulo the modulus: the only target.

    Sums along the way are no targets: they would be tokens, and each follows from the last one.
    """
    count = int(rng.integers(task.min_length, task.length + 1))
    numbers = rng.integers(task.modulus, size=count)
    answer = numbers.sum() % task.modulus
    tokens = np.array([*numbers, task.modulus, answer], dtype=np.int32)
    targets = np.zeros(count + 2, dtype=bool)
    targets[-1] = True
    return Document(tokens, targets)
