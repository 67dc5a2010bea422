"""Phone books with a question; `config.synthetic_tasks.Phonebook` says what the task is."""

import numpy as np

from flame_accel.config.synthetic_tasks import MOST_NAMES, Phonebook
from flame_accel.data.documents import AnsweredText

FIRST_SYLLABLES = ("Al", "Be", "Ca", "Do", "El", "Fa", "Gi", "Ha", "Jo", "Le")
FIRST_ENDINGS = ("ra", "na", "lo", "mi", "ven")
LAST_SYLLABLES = ("Bor", "Dun", "Hal", "Kes", "Mar", "Nor", "Pel", "Ros", "Tar", "Win")
LAST_ENDINGS = ("den", "field", "ley", "sson", "well")


def make_phonebook(task: Phonebook, rng: np.random.Generator) -> AnsweredText:
    """Lines of a name and its number, examples of the question, and the one to answer."""
    firsts = [a + b for a in FIRST_SYLLABLES for b in FIRST_ENDINGS]
    lasts = [a + b for a in LAST_SYLLABLES for b in LAST_ENDINGS]
    assert len(firsts) * len(lasts) == MOST_NAMES
    names = [
        f"{firsts[i // len(lasts)]} {lasts[i % len(lasts)]}"
        for i in rng.choice(MOST_NAMES, task.entries, replace=False)
    ]
    digits = rng.integers(10, size=(task.entries, task.digits))
    numbers = ["".join(map(str, row)) for row in digits]
    book = "".join(f"{name}: {number}\n" for name, number in zip(names, numbers, strict=True))
    asked = rng.choice(task.entries, task.shots + 1, replace=False)
    examples = "".join(f"The number of {names[i]} is {numbers[i]}.\n" for i in asked[:-1])
    question = f"{book}\n{examples}The number of {names[asked[-1]]} is "
    answer = numbers[asked[-1]]
    return AnsweredText(question + answer, [(len(question), len(question) + len(answer))])
