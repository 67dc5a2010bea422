"""What the options of the data do, from the command line to documents, rows and batches.

docs/option_tests.txt says which test looks at which option; laws/test_options.py holds it.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from flame_accel.config import Config, UserError, parse
from flame_accel.config.evaluation_sets import MAIN_SET
from flame_accel.data import (
    build_evaluation_batches,
    build_step_batches,
    load_tokenizer,
    open_data,
)
from flame_accel.data.loading import step_batches as loading
from flame_accel.data.loading import workers


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture
def configured(flags: Callable[..., list[str]]) -> Callable[..., Config]:
    """`configured(**{"section.option": value})`: the configuration of a tiny run."""
    return lambda **changes: parse(flags(**changes))


def data_of(config: Config) -> Any:
    return open_data(config.training, config.evaluation, load_tokenizer("byte", False))


def steps_of(config: Config) -> Iterator[list[Any]]:
    """The micro-batches of each step of one process."""
    return iter(build_step_batches(config.training, data_of(config), rank=0, world_size=1))


@pytest.mark.covers_option(
    "training.batch_size",
    "training.seq_len",
    "training.context_len",
    "training.varlen",
    "training.gradient_accumulation_steps",
)
def test_the_sizes_of_a_step(configured):
    sizes = {
        "training.batch_size": 3,
        "training.seq_len": 32,
        "training.gradient_accumulation_steps": 2,
    }
    step = next(steps_of(configured(**sizes)))
    assert [tuple(batch["input_ids"].shape) for batch in step] == [(3, 32)] * 2

    packed = {"training.varlen": True, "training.context_len": 8}
    [batch, _] = next(steps_of(configured(**sizes, **packed)))
    assert tuple(batch["input_ids"].shape) == (1, 3 * 32)
    lengths = np.diff(batch["cu_seqlens"])
    assert lengths.max() == 8 and lengths.sum() == 3 * 32


@pytest.mark.covers_option("training.num_workers", "training.prefetch_factor")
def test_how_the_loader_works(configured, monkeypatch):
    made = []

    class Spy(workers.DataLoader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            made.append((options["num_workers"], options["prefetch_factor"]))
            super().__init__(*arguments, **options)

    monkeypatch.setattr(workers, "DataLoader", Spy)
    next(steps_of(configured(**{"training.num_workers": 2, "training.prefetch_factor": 3})))
    next(steps_of(configured(**{"training.num_workers": 0})))
    assert made == [(2, 3), (0, None)]


@pytest.mark.covers_option("training.pin_memory")
@pytest.mark.parametrize("asked", [False, True])
def test_batches_are_pinned_where_there_is_a_gpu(configured, monkeypatch, asked):
    pinned = []
    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "pin_memory", lambda batch: pinned.append(batch) or batch)
    next(steps_of(configured(**{"training.pin_memory": asked})))
    assert bool(pinned) == asked


@pytest.mark.covers_option("training.persistent_workers")
@pytest.mark.parametrize("asked", [False, True])
def test_workers_stay_for_another_pass_where_asked(configured, monkeypatch, asked):
    started = []
    start = loading.start_packing_workers
    monkeypatch.setattr(
        loading, "start_packing_workers", lambda *given: started.append(1) or start(*given)
    )
    config = configured(**{"training.persistent_workers": asked, "training.num_workers": 1})
    stream = build_step_batches(config.training, data_of(config), rank=0, world_size=1)
    for _ in range(2):
        next(iter(stream))
    assert len(started) == (1 if asked else 2)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Files in folders, some named after splits, each with texts in two columns."""
    for name in ("a", "b", "more/a", "more/b", "splits/train", "splits/test"):
        path = tmp_path / "library" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": f"{name}: {i}", "body": f"body of {name}: {i}"} for i in range(20)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "library"


def texts_of(dataset: Any) -> list[str]:
    """Every document, without its last token, the end."""
    tokenizer = load_tokenizer("byte", False)
    return [
        tokenizer.decode(document.tokens[:-1].tolist()) for document, _ in dataset.read_in_order()
    ]


@pytest.mark.covers_option(
    "training.dataset_split",
    "training.data_dir",
    "training.data_files",
    "evaluation.dataset_split",
    "evaluation.data_dir",
    "evaluation.data_files",
)
@pytest.mark.parametrize("section", ["training", "evaluation"])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"data_files": "more/b.jsonl"}, "more/b"),
        ({"data_dir": "more", "data_files": "a.jsonl"}, "more/a"),
        ({"dataset": "{}/splits", "dataset_split": "test"}, "splits/test"),
        ({"dataset": "json", "data_files": "{}/b.jsonl", "dataset_split": "train"}, "b"),
    ],
)
def test_options_narrow_a_dataset(configured, corpus, library, section, options, name):
    asked = {"dataset": "{}", **options}
    sides = {f"{section}.{key}": value.format(library) for key, value in asked.items()}
    data = data_of(
        configured(**{f"{side}.dataset": corpus for side in ("training", "evaluation")} | sides)
    )
    [training], evaluation = data.training, data.evaluation[MAIN_SET]
    narrowed, other = (training, evaluation)[:: 1 if section == "training" else -1]
    assert texts_of(narrowed) == [f"{name}: {i}" for i in range(20)]
    assert len(texts_of(other)) == 40


@pytest.mark.covers_option("training.text_column")
def test_the_column_of_the_text(configured, library):
    column = {"training.text_column": "body", "training.dataset": library / "a.jsonl"}
    [dataset] = data_of(configured(**column)).training
    assert texts_of(dataset) == [f"body of a: {i}" for i in range(20)]


@pytest.mark.covers_option("training.add_bos")
@pytest.mark.parametrize(
    ("policy", "itself", "first"),
    [("always", False, 258), ("never", True, ord("a")), ("auto", True, 258), ("auto", False, 97)],
)
def test_documents_begin_with_bos_as_the_option_says(configured, library, policy, itself, first):
    tokenizer = load_tokenizer("byte", False)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    if itself:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 258)]
        )
    config = configured(
        **{"training.add_bos": policy, "training.dataset": library / "a.jsonl"},
    )
    [dataset] = open_data(config.training, config.evaluation, tokenizer).training
    assert {int(document.tokens[0]) for document, _ in dataset.read_in_order()} == {first}


@pytest.mark.covers_option("training.dataset_name", "evaluation.dataset_name")
@pytest.mark.parametrize("section", ["training", "evaluation"])
def test_the_name_of_a_dataset_chooses_its_configuration(configured, corpus, monkeypatch, section):
    asked = []

    def load(*names: Any, **options: Any) -> None:
        asked.append(names)
        raise ValueError("there is no network")

    monkeypatch.setattr("datasets.load_dataset_builder", load)
    sides = {f"{side}.dataset": corpus for side in ("training", "evaluation")}
    named = {f"{section}.dataset": "owner/name", f"{section}.dataset_name": "small"}
    with pytest.raises(UserError, match="there is no network"):
        data_of(configured(**sides | named))
    assert [names[:2] for names in asked] == [("owner/name", "small")]


@pytest.mark.covers_option("training.streaming", "training.shuffle_block")
def test_a_stream_is_shuffled_within_blocks(configured, library):
    streamed = {
        "training.dataset": library / "a.jsonl",
        "training.streaming": True,
        "training.batch_size": 1,
        "training.seq_len": 100,
    }

    def order(block: int) -> list[int]:
        [batch] = next(steps_of(configured(**streamed, **{"training.shuffle_block": block})))
        words = load_tokenizer("byte", False).decode(batch["input_ids"].flatten().tolist())
        return [int(number) for number in re.findall(r"a: (\d+)<", words)]

    assert order(1) == list(range(len(order(1))))
    pairs = order(2)
    assert pairs != order(1)
    assert [number // 2 for number in pairs] == sorted(number // 2 for number in pairs)


@pytest.mark.covers_option("evaluation.batch_size", "evaluation.max_tokens")
def test_how_much_is_evaluated_and_in_which_batches(configured, library):
    def evaluated(**options: Any) -> Any:
        config = configured(
            **{"evaluation.dataset": library / "a.jsonl"},
            **{f"evaluation.{key}": value for key, value in options.items()},
        )
        return build_evaluation_batches(
            config.training, config.evaluation, data_of(config), rank=0, world_size=1
        )[MAIN_SET]

    whole, part = evaluated(), evaluated(max_tokens=31, batch_size=1)
    # whole documents, of which the last goes beyond: "a: 0" to "a: 9" have 5 tokens with their end
    # every token but the first is a target
    assert [sum(batch["num_targets"] for batch in some) + 1 for some in (whole, part)] == [110, 35]
    assert {len(batch["input_ids"]) for batch in part} == {1}
    assert {len(batch["input_ids"]) for batch in whole} == {8}
