"""Documents of multi-query associative recall; `config.synthetic_tasks.Mqar` says what it is."""

import numpy as np

from flame_accel.config.synthetic_tasks import Mqar
from flame_accel.data.documents import Document


def make_mqar(task: Mqar, rng: np.random.Generator) -> Document:
    """Pairs of a key and a value, then every key once more with its value behind it.

    Zoology, https://arxiv.org/abs/2312.04927: keys are 1 to vocab / 2 - 1 and values vocab / 2 to
    vocab - 1, none twice; a query stands at distance 2 i behind the pairs with a probability that
    is proportional to (i + 1)^(power - 1). There the input ends before each answer; here, as in
    text, the answer stands behind its query. Random filler has none of the keys, so that the pair
    is the only place that tells the answer.
    """
    half = task.vocab // 2
    keys = 1 + rng.choice(half - 1, task.pairs, replace=False)
    values = half + rng.choice(task.vocab - half, task.pairs, replace=False)
    tokens = np.zeros(task.length, dtype=np.int32)
    if task.filler == "random":
        others = np.setdiff1d(np.arange(task.vocab), keys)
        tokens[:] = rng.choice(others, task.length)
    stop = 2 * task.pairs
    tokens[0:stop:2], tokens[1:stop:2] = keys, values
    slots = (task.length - stop) // 2
    weights = np.arange(1, slots + 1) ** (task.power - 1)
    gaps = rng.choice(slots, task.pairs, replace=False, p=weights / weights.sum())
    queries = stop + 2 * gaps
    tokens[queries], tokens[queries + 1] = keys, values
    targets = np.zeros(task.length, dtype=bool)
    targets[queries + 1] = True
    return Document(tokens, targets)
