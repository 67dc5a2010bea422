"""What a run recorded about a model: the facts of its card, read from the files of the run folder.

Nothing is computed from anything but these files and those of the model; what they do not say is
None. How the facts are put into words is decided in `card_sections` and `card_header`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from flame_accel.data.sources.dataset_descriptions import DatasetDescription
from flame_accel.hub.model_sources import StartingWeights
from flame_accel.json_text import parse_json_text
from flame_accel.observe.evaluations_file import Evaluation as BenchmarkRecord
from flame_accel.observe.evaluations_file import read_evaluations
from flame_accel.observe.metrics_file import METRICS_FILE, read_records
from flame_accel.observe.starts import (
    OptionValue,
    RunStart,
    read_kept_starts,
    read_options_that_made_step,
)

EVALUATION_KEYS = ("eval/loss", "eval/perplexity", "eval/bits_per_byte", "eval/accuracy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A validation of the run."""

    step: int
    values: Mapping[str, float]
    """Some of `EVALUATION_KEYS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Time of the recorded steps, without validation, checkpoints and what a crash undid."""

    seconds: float
    device_seconds: float | None
    """Summed over the devices; None if their number is not known for all steps."""
    tokens_per_second: float
    peak_memory_gib: float | None
    """Of one device, the largest one recorded."""
    mfu: float | None
    """Of the last record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What is recorded about a model and the steps that made it."""

    model_type: str
    num_weights: int | None
    """Elements of the stored tensors."""
    model_config: Mapping[str, Any]
    """config.json."""
    step: int | None = None
    tokens: int | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """By name, at that step; "none" stands for None."""
    starts: Sequence[RunStart] = ()
    """Starts of the run whose steps are in the model, the first one first."""
    records: Sequence[Mapping[str, float]] = ()
    """Of metrics.jsonl, up to the step."""
    benchmarks: Sequence[BenchmarkRecord] = ()
    """Tasks and groups of lm-eval, evaluated at that very step and on all of their examples."""

    def option(self, name: str) -> Any:
        """The value of an option; None if it is none or was not recorded."""
        value = self.options.get(name)
        return None if value == "none" else value

    @property
    def training_data(self) -> Sequence[DatasetDescription]:
        """The datasets of training; empty if they were not recorded."""
        return self.starts[-1].get("training_data", ()) if self.starts else ()

    @property
    def evaluation_data(self) -> DatasetDescription | None:
        """The dataset of validation."""
        return self.starts[-1].get("evaluation_data") if self.starts else None

    @property
    def starting_weights(self) -> StartingWeights | None:
        """The weights that the run started from."""
        return self.starts[0].get("starting_weights") if self.starts else None

    @property
    def given_or_starting_base_model(self) -> str | None:
        """Name on the Hub of the model that this one was made from."""
        if (given := self.option("hub.base_model")) is not None:
            return given
        weights = self.starting_weights
        return weights["name"].partition("@")[0] if weights and weights["on_hub"] else None

    @property
    def last_values(self) -> Mapping[str, float]:
        """The last value of every measurement."""
        last: dict[str, float] = {}
        for record in self.records:
            last |= record
        return last

    @property
    def tokens_per_step(self) -> int | None:
        """Of the last steps."""
        if len(self.records) > 1:
            first, last = self.records[-2], self.records[-1]
            return int((last["tokens"] - first["tokens"]) / (last["step"] - first["step"]))
        if self.records and self.records[0]["step"]:
            return int(self.records[0]["tokens"] / self.records[0]["step"])
        return None

    @property
    def last_evaluation(self) -> Evaluation | None:
        """The last validation before or after the model's step."""
        for record in reversed(self.records):
            values = {key: record[key] for key in EVALUATION_KEYS if key in record}
            if values:
                return Evaluation(step=int(record["step"]), values=values)
        return None

    @property
    def cost(self) -> Cost | None:
        """None if no step was timed."""
        seconds = device_seconds = tokens = 0.0
        before = self.starts[0]["step"] if self.starts else 0
        for record in self.records:
            if "time/step_seconds" not in record:
                continue
            # a mean over the steps since the record before
            elapsed = record["time/step_seconds"] * (record["step"] - before)
            before = record["step"]
            seconds += elapsed
            tokens += elapsed * record["throughput/tokens_per_second"]
            running = [start for start in self.starts if start["step"] < record["step"]]
            device_seconds += elapsed * running[-1]["processes"] if running else 0.0
        if not seconds:
            return None
        peaks = [r["memory/peak_gib"] for r in self.records if "memory/peak_gib" in r]
        return Cost(
            seconds=seconds,
            device_seconds=device_seconds if self.starts else None,
            tokens_per_second=tokens / seconds,
            peak_memory_gib=max(peaks, default=None),
            mfu=self.last_values.get("throughput/mfu"),
        )


def read_model_facts(
    model_folder: Path, run_folder: Path | None, *, step: int | None, tokens: int | None
) -> ModelFacts:
    """The facts about a model in the Hugging Face format.

    Args:
        model_folder: With config.json and safetensors.
        run_folder: Of the run that made it; None if it is not known.
        step: Number of completed steps; None if it is not known, which leaves out what depends on
            it.
        tokens: Number of tokens of these steps.
    """
    config = parse_json_text((model_folder / "config.json").read_bytes())
    about_the_model: dict[str, Any] = {
        "model_type": config["model_type"],
        "num_weights": count_stored_parameters(model_folder),
        "model_config": config,
        "step": step,
        "tokens": tokens,
    }
    if run_folder is None or step is None:
        return ModelFacts(**about_the_model)
    metrics = run_folder / METRICS_FILE
    records = read_records(metrics) if metrics.is_file() else []
    return ModelFacts(
        **about_the_model,
        options=read_options_that_made_step(run_folder, step),
        starts=[start for start in read_kept_starts(run_folder) if start["step"] < step],
        records=[record for record in records if record["step"] <= step],
        benchmarks=[
            each
            for each in read_evaluations(run_folder)
            if each.kind == "lm_eval" and each.step == step and each.details.get("limit") is None
        ],
    )


def count_stored_parameters(model_folder: Path) -> int | None:
    """Elements of all tensors in the safetensors of a folder; tied weights are stored once."""
    files = sorted(model_folder.glob("*.safetensors"))
    count = 0
    for path in files:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                count += size
    return count if files else None
