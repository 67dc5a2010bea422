"""Samples at validation: repeatable, and no reason to end a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from flame_accel import kernels
from flame_accel.config import UserError
from flame_accel.data import load_tokenizer
from flame_accel.evaluation.final_report import EXPORTED_MODEL
from flame_accel.evaluation.generate import GenerationSettings
from flame_accel.evaluation.validation_samples import ValidationSamples
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.observe.evaluations_file import read_evaluations
from tests.helpers.runs import SHORT_RUN, read_log

BYTE = load_tokenizer("byte", False)


def samples(file: Path, temperature: float = 0.0, seed: int = 0) -> ValidationSamples:
    settings = GenerationSettings(max_new_tokens=12, temperature=temperature, seed=seed)
    return ValidationSamples(Accelerator(cpu=True), BYTE, file, settings)


@pytest.fixture(scope="module")
def model() -> Any:
    kernels.install()
    return instantiate_on_default_device(tiny_config("gla", vocab_size=258), seed=0).eval()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("abc, def\n\nOnce\n")
    return file


def test_samples_are_repeatable_whatever_is_drawn_elsewhere(model, prompts: Path):
    greedy = samples(prompts)
    first = greedy.generate(model, step=1)
    torch.rand(3)
    assert [sample["prompt"] for sample in first] == ["abc, def", "Once"]
    assert greedy.generate(model, step=2) == first
    seeded = [samples(prompts, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (each.generate(model, step=1) for each in seeded)
    assert one == again != other


def test_a_model_that_cannot_generate_ends_no_run(model, prompts: Path, log, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no way")

    monkeypatch.setattr(type(model), "generate", fail)
    some = samples(prompts)
    assert some.generate(model, step=1) == some.generate(model, step=2) == []
    assert log.text.count("no samples at validation: ValueError: no way") == 1


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_prompts_is_refused_before_the_run(tmp_path: Path, text: str):
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(UserError, match="holds no prompt"):
        samples(tmp_path / "prompts.txt")


@pytest.mark.covers_option("evaluation.prompts", "evaluation.sample_temperature")
def test_a_run_writes_samples_to_its_log_and_evaluations(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    prompts: Path,
    tmp_path: Path,
):
    """Also without any validation set."""
    options = {
        "evaluation.prompts": prompts,
        "evaluation.interval": 1,
        "evaluation.sample_temperature": 0,
        "evaluation.sample_tokens": 5,
    }
    train_here(flags(**{**SHORT_RUN, **options}))
    *found, exported = read_evaluations(tmp_path / "run")
    assert exported.name == EXPORTED_MODEL
    assert [(each.step, each.name, each.metrics) for each in found] == [
        (1, "validation", {}),
        (2, "validation", {}),
    ]
    for each in found:
        assert [sample["prompt"] for sample in each.samples] == ["abc, def", "Once"]
        for sample in each.samples:
            text = f"step {each.step}: sample:\n{sample['prompt']}{sample['text']}"
            assert text in read_log(tmp_path / "run")
