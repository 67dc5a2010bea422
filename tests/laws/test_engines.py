"""One run under every engine: the same losses, the same gradients, checkpoints that move.

`make engines` writes the table of all runs into benchmarks/results/engines_cpu.md.
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.checkpoints import undo_checkpoint
from tests.helpers.runs import ROOT, launch, read_records, run_python

pytestmark = pytest.mark.distributed

ROWS, STEPS, SAVED = 16, 20, 10
TOLERANCE = 1e-5


class Engine(NamedTuple):
    """A file of accelerate_configs/, its processes, and its number of data-parallel ranks."""

    config: str
    processes: int
    dp_size: int
    options: tuple[str, ...] = ()


ENGINES = {
    "one process": Engine("cpu", 1, 1),
    "DDP x 2": Engine("ddp", 2, 2),
    "FSDP2 x 2": Engine("fsdp2", 2, 2),
    "FSDP2 x 4": Engine("fsdp2", 4, 4),
    "HSDP 2 x 2": Engine(
        "hsdp",
        4,
        4,
        ("--training.data_parallel_replicate_degree=2", "--training.data_parallel_shard_degree=2"),
    ),
    "TP x 2": Engine("tp", 2, 1, ("--training.tensor_parallel_degree=2",)),
    "FSDP2 x TP 2 x 2": Engine("fsdp2_tp", 4, 2, ("--training.tensor_parallel_degree=2",)),
    "ZeRO-1 x 2": Engine("zero1", 2, 2),
    "ZeRO-2 x 2": Engine("zero2", 2, 2),
    "ZeRO-3 x 2": Engine("zero3", 2, 2),
}
ACCUMULATIONS = (1, 2, 4)
REFERENCE = ("one process", 1)


class Curve(NamedTuple):
    """What a run records: losses and gradient norms by step, and the final validation loss."""

    losses: list[float]
    norms: list[float]
    validation: float


def read_curve(run_folder: Path) -> Curve:
    """The curve of a run that recorded every step."""
    records = read_records(run_folder)
    return Curve(
        [record["train/loss"] for record in records],
        [record["optimizer/grad_norm"] for record in records],
        records[-1]["eval/loss"],
    )


def largest_relative_difference(curve: Curve, reference: Curve) -> float:
    """The largest relative difference between any two values of two curves."""
    pairs = itertools.chain(
        zip(curve.losses, reference.losses, strict=True),
        zip(curve.norms, reference.norms, strict=True),
        [(curve.validation, reference.validation)],
    )
    return max(abs(value - wanted) / abs(wanted) for value, wanted in pairs)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> list[Path]:
    """Ragged texts, conversations whose targets are what the assistant says, validation texts."""
    folder = tmp_path_factory.mktemp("ragged")
    texts = [{"text": f"document {i}: " + "abc def " * (i * 7 % 23)} for i in range(60)]
    chats = [
        [
            {"role": "user", "content": "what is " + "so " * (i % 11) + f"{i}?"},
            {"role": "assistant", "content": f"it is {i}" + " indeed" * (i % 5)},
        ]
        for i in range(60)
    ]
    held_out = [{"text": f"another {i}: " + "ghi " * (i * 5 % 17)} for i in range(9)]
    files = {
        "texts": texts,
        "chats": [{"messages": messages} for messages in chats],
        "held_out": held_out,
    }
    for name, lines in files.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return [folder / f"{name}.jsonl" for name in files]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """The byte tokenizer, with a chat template that marks what the assistant says."""
    folder = tmp_path_factory.mktemp("tokenizer") / "bytes"
    shutil.copytree(ROOT / "flame_accel/data/tokens/byte_tokenizer", folder)
    template = (
        "{% for message in messages %}{{ message.role }}: {% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{% endgeneration %}"
        "{% else %}{{ message.content }}{% endif %}\n{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    return folder


class Runs:
    """Runs by engine and accumulation; each is launched once."""

    def __init__(self, root: Path, corpora: list[Path], model: Path, tokenizer: Path) -> None:
        self.root, self.corpora, self.model, self.tokenizer = root, corpora, model, tokenizer
        self.curves: dict[tuple[str, int], Curve] = {}

    def folder(self, name: str, accumulation: int) -> Path:
        """The folder of a run."""
        return self.root / f"{name} {accumulation}".replace(" ", "-")

    def launch(self, name: str, accumulation: int, folder: Path) -> None:
        """Trains in a folder, or resumes from what is there."""
        engine = ENGINES[name]
        texts, chats, held_out = self.corpora
        options = {
            "job.dump_folder": folder,
            "model.config": self.model,
            "model.tokenizer_path": self.tokenizer,
            "training.dataset": f"{texts},{chats}",
            "training.data_probs": "0.6,0.4",
            "training.varlen": True,
            "training.context_len": 48,
            "training.packing": "best_fit",
            "training.seq_len": 64,
            "training.steps": STEPS,
            "training.warmup_steps": 4,
            "training.batch_size": ROWS // engine.dp_size // accumulation,
            "training.gradient_accumulation_steps": accumulation,
            "training.num_workers": 0,
            "metrics.log_freq": 1,
            "checkpoint.interval": SAVED,
            "evaluation.dataset": held_out,
            "evaluation.sample_tokens": 0,
        }
        argv = [f"--{option}={value}" for option, value in options.items()]
        launch([*argv, *engine.options], config=engine.config, processes=engine.processes)

    def curve(self, name: str, accumulation: int) -> Curve:
        """The curve of a run from its first step to the last."""
        key = (name, accumulation)
        if key not in self.curves:
            folder = self.folder(*key)
            self.launch(*key, folder)
            self.curves[key] = read_curve(folder)
        return self.curves[key]

    def resume(self, saved_by: tuple[str, int], loaded_by: tuple[str, int], folder: Path) -> Curve:
        """The curve of a run that is saved by one engine and resumed by another."""
        self.curve(*saved_by)
        shutil.copytree(self.folder(*saved_by), folder)
        undo_checkpoint(folder / f"checkpoint/step-{STEPS}")
        self.launch(*loaded_by, folder)
        assert f"continuing after step {SAVED}" in (folder / "log.txt").read_text()
        return read_curve(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpora, tiny_model, tokenizer, request):
    made = Runs(tmp_path_factory.mktemp("engines"), corpora, tiny_model, tokenizer)
    yield made
    wanted = request.config.getoption("--engines-table")
    if wanted:
        Path(wanted).write_text(format_table(made.curves))


def format_table(curves: dict[tuple[str, int], Curve]) -> str:
    """A Markdown table of all runs, with their difference from the reference."""
    shown = (1, 5, 10, 20)
    reference = curves[REFERENCE]
    heads = ["engine", "accumulation"]
    heads += [f"loss {step}" for step in shown] + [f"norm {step}" for step in shown]
    rows = [[*heads, "validation", "largest relative difference of 41 values"]]
    rows.append(["---"] * len(rows[0]))
    for (name, accumulation), curve in curves.items():
        values = [curve.losses[step - 1] for step in shown]
        values += [curve.norms[step - 1] for step in shown]
        numbers = [f"{value:.6f}" for value in [*values, curve.validation]]
        apart = f"{largest_relative_difference(curve, reference):.1e}"
        rows.append([name, str(accumulation), *numbers, apart])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


# on two cores, four processes wait for each other in every micro-batch
SETTINGS = [
    pytest.param(
        name,
        accumulation,
        marks=[pytest.mark.slow] if engine.processes * accumulation > 8 else [],
    )
    for name, engine in ENGINES.items()
    for accumulation in ACCUMULATIONS
]


@pytest.mark.covers_option("training.data_parallel_replicate_degree")
@pytest.mark.parametrize(("name", "accumulation"), SETTINGS)
def test_losses_and_gradient_norms_equal_those_of_one_process(runs, name, accumulation):
    assert (
        largest_relative_difference(runs.curve(name, accumulation), runs.curve(*REFERENCE))
        < TOLERANCE
    )


def test_the_data_is_ragged_and_has_masked_targets(runs):
    """Otherwise the equality of the engines would say little."""
    runs.curve(*REFERENCE)
    record = read_records(runs.folder(*REFERENCE))[-1]
    assert record["data/packing_efficiency"] < 0.99


# each engine writes once and reads once, and most moves change the number of processes
CYCLE = [
    "one process",
    "FSDP2 x 4",
    "ZeRO-1 x 2",
    "TP x 2",
    "HSDP 2 x 2",
    "DDP x 2",
    "ZeRO-3 x 2",
    "FSDP2 x TP 2 x 2",
    "ZeRO-2 x 2",
    "FSDP2 x 2",
]


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"), list(zip(CYCLE, [*CYCLE[1:], CYCLE[0]], strict=True))
)
def test_a_checkpoint_of_any_engine_resumes_under_another(runs, tmp_path, saved_by, loaded_by):
    curve = runs.resume((saved_by, 1), (loaded_by, 2), tmp_path / "moved")
    assert largest_relative_difference(curve, runs.curve(*REFERENCE)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("saved_by", "loaded_by"), list(itertools.permutations(ENGINES, 2)))
def test_a_checkpoint_of_any_engine_resumes_under_every_other(runs, tmp_path, saved_by, loaded_by):
    curve = runs.resume((saved_by, 1), (loaded_by, 1), tmp_path / "moved")
    assert largest_relative_difference(curve, runs.curve(*REFERENCE)) < TOLERANCE


def test_two_processes_of_the_train_command_equal_one_with_twice_the_accumulation(
    tmp_path, corpus, tiny_model
):
    def options(name: str, processes: int) -> list[str]:
        return [
            *("--model.config", str(tiny_model), "--model.tokenizer_path", "byte"),
            *("--training.dataset", str(corpus), "--training.batch_size", "4"),
            *("--training.seq_len", "64", "--training.steps", "4"),
            *("--training.warmup_steps", "2", "--metrics.log_freq", "1"),
            *("--training.gradient_accumulation_steps", str(2 // processes)),
            *("--evaluation.sample_tokens", "0", "--job.dump_folder", str(tmp_path / name)),
        ]

    done = run_python(["-m", "flame_accel", "train", *options("two", 2)], NGPU="2")
    assert done.returncode == 0, done.stdout + done.stderr
    launch(options("one", 1), config="cpu", processes=1)
    two, one = (
        [record["train/loss"] for record in read_records(tmp_path / name)]
        for name in ("two", "one")
    )
    assert len(two) == 4
    assert two == pytest.approx(one, rel=1e-5)
