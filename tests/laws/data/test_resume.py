"""A data stream resumes anywhere, on other ranks and from moved data; other tokens are refused."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config import EvaluationConfig
from flame_accel.config.errors import UserError
from flame_accel.data.from_options import (
    open_data,
)
from tests.helpers.data_runs import (
    BEST_FIT,
    BYTE,
    KINDS,
    STEPS,
    TEXTS,
    Case,
    epochs_of,
    open_run,
    play,
    write_cached,
    write_json_lines,
)

SPLITS = st.sampled_from([(world, part) for world in (1, 2, 4) for part in (1, 2, 4)])


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_anywhere_and_twice_changes_nothing(
    cases: Callable[[str], Case], kind: str
) -> None:
    """By induction: from the state behind any step the next ones follow, and their states.

    The data are read many times within these steps.
    """
    case = cases(kind)
    assert min(chain(*epochs_of(case.states[-1]))) > 1

    @given(st.integers(0, STEPS - 20), st.integers(1, 9), st.integers(1, 9), SPLITS, SPLITS)
    @settings(max_examples=6, deadline=None)
    def check(start: int, first: int, second: int, here: tuple, there: tuple) -> None:
        state = case.states[start]
        for count, (world_size, accumulation) in ((first, here), (second, there)):
            found, state = play(
                case.training,
                case.data,
                count,
                world_size=world_size,
                accumulation=accumulation,
                state=state,
            )
            assert np.array_equal(found, case.steps[start : start + count])
            start += count
            assert state == case.states[start]

    check()


def test_a_token_cache_gives_what_its_table_gave_and_resumes_with_it(
    files: dict[str, str], tmp_path: Path
) -> None:
    """Data may move, too: names are no part of a state."""
    (tmp_path / "a").symlink_to(files["a"])
    write_cached(tmp_path / "a", tmp_path / "cached")
    table, cache = (
        open_run(seq_len=16, dataset=dataset) for dataset in (files["a"], str(tmp_path / "cached"))
    )
    expected, _ = play(*table, 9)
    found, state = play(*cache, 4)
    further, state = play(*table, 3, state=state, world_size=2)
    last, state = play(*cache, 2, state=state)
    assert np.array_equal(np.concatenate([found, further, last]), expected)
    assert state == play(*table, 9)[1]
    linked = open_run(seq_len=16, dataset=str(tmp_path / "a"))
    assert np.array_equal(play(*linked, 2, state=state)[0], play(*table, 2, state=state)[0])


def test_what_changes_the_tokens_is_refused_by_name(files: dict[str, str], tmp_path: Path) -> None:
    options = {"dataset": "{a},{b}".format(**files), "data_probs": (1, 3), "seq_len": 16}
    _, state = play(*open_run(**options), 2)
    assert play(*open_run(**{**options, "data_probs": (0.5, 1.5)}), 1, state=state)[1]
    write_json_lines(tmp_path / "b.jsonl", [*TEXTS["b"][:-1], "changed"])
    for change, message in (
        ({"data_probs": (1, 2)}, r"training\.data_probs is \[0\.3.*, the checkpoint has \[0\.25"),
        ({"seed": 7}, "training.seed is 7, the checkpoint has 42"),
        ({"varlen": True}, r"training\.context_len is 16, the checkpoint has None"),
        (BEST_FIT, "training.packing is 'best_fit', the checkpoint has 'sequential'"),
        ({"streaming": True}, "training.streaming is True, the checkpoint has None"),
        ({"dataset": "{b},{a}".format(**files)}, "documents of dataset 1 is 50, the checkpoint ha"),
        ({"dataset": files["a"], "data_probs": None}, "documents of dataset 2 is None"),
        ({"dataset": f"{files['a']},{tmp_path}/b.jsonl"}, "content of the documents of dataset 2"),
    ):
        with pytest.raises(UserError, match=message):
            play(*open_run(**{**options, **change}), 1, state=state)
    training, _ = open_run(**options)
    other = EvaluationConfig(dataset=files["a"])
    with pytest.raises(UserError, match=r"held out of dataset 1 is 0\.01, the checkpoint has None"):
        play(training, open_data(training, other, BYTE), 1, state=state)
