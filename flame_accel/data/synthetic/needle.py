"""Texts with a number to find; `config.synthetic_tasks.Needle` says what the task is."""

from collections.abc import Callable

import numpy as np

from flame_accel.config.synthetic_tasks import Needle
from flame_accel.data.documents import AnsweredText

OPENING = "Somewhere in this text a number is given. Remember it."
HAYSTACK = (
    " The river bends to the west behind the mill.",
    " A cart rolled past the market without stopping.",
    " Rain fell on the roofs until the lamps were lit.",
    " The baker closed his shop and walked home.",
    " Two birds sat on the wall of the old garden.",
    " Nobody had opened the window since the spring.",
    " The road to the coast was quiet that evening.",
    " She folded the letter and put it into a drawer.",
)
"""Sentences that say nothing about the number."""


def make_needle(
    task: Needle, rng: np.random.Generator, count_tokens: Callable[[str], int]
) -> AnsweredText:
    """As many sentences as `task.length` tokens have room for, with the number among them.

    Args:
        task: its options.
        rng: source of the number, the sentences and the depth.
        count_tokens: number of tokens that the whole text has as a document.
    """
    low = 10 ** (task.digits - 1)
    number = str(rng.integers(low, 10 * low))
    depth = float(rng.random()) if task.depth is None else task.depth
    sentence_tokens = min(count_tokens(text) for text in HAYSTACK)
    # more than fit; those that do not are dropped from the end
    most = max(0, task.length // max(1, sentence_tokens - 2))
    sentences = [HAYSTACK[i] for i in rng.integers(len(HAYSTACK), size=most)]
    shortest, longest = 0, most
    # tokens grow with sentences: the most that fit
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        text = _insert_needle(sentences[:middle], number, depth).text
        shortest, longest = (
            (middle, longest) if count_tokens(text) <= task.length else (shortest, middle - 1)
        )
    return _insert_needle(sentences[:shortest], number, depth)


def _insert_needle(sentences: list[str], number: str, depth: float) -> AnsweredText:
    place = round(depth * len(sentences))
    needle = f" The number is {number}."
    body = "".join([*sentences[:place], needle, *sentences[place:]])
    question = f"{OPENING}{body} Which number was given? The number is "
    return AnsweredText(question + number, [(len(question), len(question) + len(number))])
