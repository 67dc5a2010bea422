"""Documents of selective copying; `config.synthetic_tasks.SelectiveCopying` says what it is."""

import numpy as np

from flame_accel.config.synthetic_tasks import SelectiveCopying
from flame_accel.data.documents import Document

NOISE = 0


def make_selective_copying(task: SelectiveCopying, rng: np.random.Generator) -> Document:
    """Tokens at random places of the noise, the marker, and the tokens again as one answer."""
    content = rng.integers(NOISE + 1, task.vocab, size=task.tokens)
    places = np.sort(rng.choice(task.length, task.tokens, replace=False))
    tokens = np.full(task.longest_document, NOISE, dtype=np.int32)
    tokens[places] = content
    tokens[task.length] = task.vocab
    tokens[task.length + 1 :] = content
    targets = np.zeros(len(tokens), dtype=bool)
    targets[task.length + 1 :] = True
    return Document(tokens, targets)
