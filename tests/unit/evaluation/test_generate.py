"""Generated text: continues the prompt, repeatable by its seed."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from flame_accel import kernels
from flame_accel.config import UserError
from flame_accel.data import load_tokenizer
from flame_accel.evaluation import sample_prompt_with_continuation
from flame_accel.evaluation.generate import (
    GenerationSettings,
    check_prompt_fits_context,
    generate_continuations,
)
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from tests.helpers.model_configs import tiny_generator
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
    return instantiate_on_default_device(
        tiny_config("gla", vocab_size=258), seed=0
    ).eval(), tokenizer


def test_the_same_seed_gives_the_same_text_and_leaves_the_random_state_alone(generator):
    model, tokenizer = generator

    def sample(seed: int) -> str:
        return sample_prompt_with_continuation(
            model, tokenizer, prompt="abc", new_tokens=12, seed=seed
        )

    before = torch.get_rng_state()
    assert sample(1) == sample(1) != sample(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert sample(1).startswith("abc")


def test_an_empty_prompt_starts_a_document(generator):
    model, tokenizer = generator
    seen = []
    generate = model.generate

    class Spy:
        device, generation_config = model.device, model.generation_config

        def generate(self, inputs: torch.Tensor, **options: Any) -> torch.Tensor:
            seen.append(inputs.tolist())
            return generate(inputs, **options)

    sample_prompt_with_continuation(Spy(), tokenizer, prompt="", new_tokens=1, seed=0)
    start = tokenizer.bos_token_id
    assert seen == [[[tokenizer.eos_token_id if start is None else start]]]


SETTINGS = GenerationSettings(max_new_tokens=6, temperature=0.0)


def continue_greedily(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    settings = replace(SETTINGS, **{k: v for k, v in options.items() if hasattr(SETTINGS, k)})
    rest = {k: v for k, v in options.items() if not hasattr(SETTINGS, k)}
    return generate_continuations(model, prompts, settings, padding_token=0, **rest)


@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_of_a_batch_are_continued_as_alone(beams):
    model = tiny_generator("gla")
    prompts = [[3], [1, 2, 3, 4, 5], list(range(40))]
    batch = continue_greedily(model, prompts, beams=beams)
    assert batch == [continue_greedily(model, [prompt], beams=beams)[0] for prompt in prompts]
    assert list(map(len, batch)) == [6, 6, 6]


@pytest.mark.parametrize("model_type", ["gla", "transformer", "mamba2", "samba"])
def test_a_long_prompt_is_read_in_pieces_with_the_same_result(model_type, monkeypatch):
    model = tiny_generator(model_type)
    lengths = []
    forward = model.forward

    def note(*args: Any, **options: Any) -> Any:
        lengths.append(options["input_ids"].shape[1])
        return forward(*args, **options)

    prompt = list(range(70))
    whole = continue_greedily(model, [prompt])
    monkeypatch.setattr(model, "forward", note)
    assert continue_greedily(model, [prompt], prefill_chunk_tokens=32) == whole
    assert lengths[:3] == [32, 32, 6] and set(lengths[3:]) == {1}
    # padding is read in one pass
    continue_greedily(model, [prompt, [1]], prefill_chunk_tokens=32)
    assert 70 in lengths


def test_text_ends_after_the_end_token_of_its_own_row():
    model = tiny_generator("gla")
    first, second = continue_greedily(model, [[3], [9, 8]])
    model.generation_config.eos_token_id = [first[2]]
    ended, other = continue_greedily(model, [[3], [9, 8]])
    assert ended == first[: first.index(first[2]) + 1]
    end = second.index(first[2]) + 1 if first[2] in second else len(second)
    assert other == second[:end]


def test_samples_repeat_with_their_seed_and_leave_the_random_state_alone():
    model, before = tiny_generator("gla"), torch.get_rng_state()
    texts = [continue_greedily(model, [[3]], temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)
    # the likeliest token alone is left
    greedy = continue_greedily(model, [[3]])
    assert continue_greedily(model, [[3]], temperature=1.5, top_k=1) == greedy
    assert continue_greedily(model, [[3]], temperature=1.5, top_p=1e-6) == greedy


def test_a_context_limits_models_with_attention_alone():
    limit = 64
    check_prompt_fits_context(tiny_generator("gla", max_position_embeddings=limit), 100, 10)
    for model_type in ("transformer", "cat"):
        model = tiny_generator(model_type, max_position_embeddings=limit)
        check_prompt_fits_context(model, 60, 4)
        with pytest.raises(UserError, match=r"has 60 tokens and 5 are to follow.*\n.* 4 at most"):
            check_prompt_fits_context(model, 60, 5)
        with pytest.raises(UserError, match="shorten the prompt to less than 64"):
            check_prompt_fits_context(model, 64, 1)


def test_memory_does_not_grow_with_the_text_of_a_recurrent_state():
    model = tiny_generator("gla", vocab_size=258)
    sizes = []

    def count(module: torch.nn.Module, arguments: tuple, options: dict, output: object) -> None:
        states = [state["recurrent_state"] for state in options["past_key_values"]]
        sizes.append(sum(state.numel() for state in states))

    model.model.layers[-1].register_forward_hook(count, with_kwargs=True)
    settings = GenerationSettings(max_new_tokens=50, temperature=0.0)
    generate_continuations(model, [[1] * 100], settings, padding_token=0, prefill_chunk_tokens=16)
    assert len(sizes) > 50 and len(set(sizes)) == 1
