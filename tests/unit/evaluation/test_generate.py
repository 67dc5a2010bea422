"""Generated text: continues the prompt, repeatable by its seed."""

import re
from typing import Any

import pytest
import torch

from flame_accel import kernels
from flame_accel.data import load_tokenizer
from flame_accel.evaluation import sample_text
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate
from tests.helpers.runs import SHORT_RUN, read_log


@pytest.mark.covers_option("evaluation.prompt", "evaluation.sample_tokens")
def test_the_sample_continues_the_prompt_by_the_number_of_tokens(train_here, flags, tmp_path):
    train_here(flags(**SHORT_RUN | {"evaluation.prompt": "abc def", "evaluation.sample_tokens": 5}))
    _, _, sample = read_log(tmp_path / "run").partition("sample of the exported model:\n")
    # the next line of the log begins with the time
    sample = re.split(r"\n\d{4}-\d\d-\d\d ", sample)[0]
    assert sample.startswith("abc def")
    # one byte each, or less where several bytes are one character
    assert len(sample) <= len("abc def") + 5


@pytest.fixture(scope="module")
def generator() -> tuple[Any, Any]:
    kernels.install()
    tokenizer = load_tokenizer("byte", False)
    return instantiate(tiny_config("gla", vocab_size=258), seed=0).eval(), tokenizer


def test_the_same_seed_gives_the_same_text_and_leaves_the_random_state_alone(generator):
    model, tokenizer = generator

    def sample(seed: int) -> str:
        return sample_text(model, tokenizer, prompt="abc", new_tokens=12, seed=seed)

    before = torch.get_rng_state()
    assert sample(1) == sample(1) != sample(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert sample(1).startswith("abc")


def test_an_empty_prompt_starts_a_document(generator):
    model, tokenizer = generator
    seen = []
    generate = model.generate

    class Spy:
        device = model.device

        def generate(self, inputs: torch.Tensor, **options: Any) -> torch.Tensor:
            seen.append(inputs.tolist())
            return generate(inputs, **options)

    sample_text(Spy(), tokenizer, prompt="", new_tokens=1, seed=0)
    start = tokenizer.bos_token_id
    assert seen == [[[tokenizer.eos_token_id if start is None else start]]]
