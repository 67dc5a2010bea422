"""Generates text: continuations of prompts, and the sample that a run logs at its end.

The loop over tokens, sampling, beams and streaming are transformers' own. Prompts are read and
encoded in `prompts`; scoring is in `validate`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fla.models.cache_utils import Cache
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.streamers import BaseStreamer

from flame_accel import kernels
from flame_accel.config import UserError
from flame_accel.config.run_options import EvaluationConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationSettings:
    """How a continuation is chosen, token by token."""

    max_new_tokens: int
    """Largest number of tokens; an end token ends the text earlier."""
    temperature: float
    """Divisor of the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Samples from the likeliest tokens that have this probability together."""
    top_k: int = 0
    """Number of the likeliest tokens that are sampled from; 0 samples from all."""
    beams: int = 1
    """Number of continuations that are followed at once; the likeliest is returned."""
    seed: int = 0
    """Seed of the sampling; the process's random state is not changed."""


def generate_continuations(
    model: PreTrainedModel,
    prompt_token_ids: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    padding_token: int,
    streamer: BaseStreamer | None = None,
    prefill_chunk_tokens: int | None = None,
    wait_for_other_ranks: bool = False,
) -> list[list[int]]:
    """Continues a batch of prompts, padded on the left.

    Args:
        model: A transformers model with `generate`, in evaluation mode.
        prompt_token_ids: Tokens of each prompt, at least one.
        settings: How tokens are chosen.
        padding_token: Any token; padding is masked.
        streamer: Gets every token of a single prompt at once; not with beams.
        prefill_chunk_tokens: Number of tokens of a prompt that the model reads in one pass, to
            bound the memory; only for fla's models with a cache, and only without padding. All if
            None.
        wait_for_other_ranks: Whether other ranks, which have a part of the weights, generate too:
            all then take as many steps, whenever each of them reaches an end token.

    Returns:
        The tokens of each continuation, end token included.
    """
    longest = max(map(len, prompt_token_ids))
    ids = torch.tensor(
        [[padding_token] * (longest - len(prompt)) + list(prompt) for prompt in prompt_token_ids]
    )
    mask = torch.tensor(
        [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompt_token_ids]
    )
    options: dict[str, Any] = {"do_sample": settings.temperature > 0}
    if settings.temperature > 0:
        options |= {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
        }
    if prefill_chunk_tokens is not None and prefill_chunk_tokens < longest and bool(mask.all()):
        options |= {"prefill_chunk_size": prefill_chunk_tokens, "past_key_values": Cache()}
    with _no_grad_autocast_and_seed(model.device, settings.seed):
        generate: Any = model.generate
        output = generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=settings.max_new_tokens,
            num_beams=settings.beams,
            pad_token_id=padding_token,
            streamer=streamer,
            synced_gpus=wait_for_other_ranks,
            **options,
        )
    generation_config: Any = model.generation_config
    ends = generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    return [_cut_after_end_token(row, ends) for row in output[:, longest:].tolist()]


def check_prompt_fits_context(
    model: PreTrainedModel, prompt_tokens: int, max_new_tokens: int
) -> None:
    """Checks that a model with attention has positions for a prompt and its continuation.

    A model whose whole past is a recurrent state has no such limit.

    Raises:
        UserError: It has not.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if (
        limit is None
        or prompt_tokens + max_new_tokens <= limit
        or not _keeps_keys_and_values_or_has_no_cache(model)
    ):
        return
    room = limit - prompt_tokens
    raise UserError(
        f"the prompt has {prompt_tokens:,} tokens and {max_new_tokens:,} are to follow, but the "
        f"context of the model has {limit:,} (max_position_embeddings)",
        remedy=f"--max_new_tokens {room} at most, or shorten the prompt"
        if room > 0
        else f"shorten the prompt to less than {limit:,} tokens",
    )


def _keeps_keys_and_values_or_has_no_cache(model: PreTrainedModel) -> bool:
    """Whether a model holds keys and values of earlier tokens, or has no cache at all."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with _no_grad_autocast_and_seed(model.device, 0):
        cache = model(input_ids=token, use_cache=model.config.use_cache).get("past_key_values")
    if not isinstance(cache, Cache):
        return True
    return any(state is not None and state["attn_state"] is not None for state in cache)


def _cut_after_end_token(token_ids: list[int], end_tokens: set[int | None]) -> list[int]:
    length = next(
        (i + 1 for i, token in enumerate(token_ids) if token in end_tokens), len(token_ids)
    )
    return token_ids[:length]


@contextmanager
def _no_grad_autocast_and_seed(device: torch.device, seed: int) -> Iterator[None]:
    """No gradients, and random numbers of a seed that leave the process's own alone.

    Under bf16 autocast on a GPU: fla's delta rule does not support fp32 there.
    """
    on_gpu = device.type == "cuda"
    half = torch.autocast("cuda", torch.bfloat16, enabled=on_gpu)
    with torch.random.fork_rng(devices=[device] if on_gpu else []), torch.no_grad(), half:
        torch.manual_seed(seed)
        yield


def load_export_and_sample_prompt_with_continuation(
    folder: Path, device: torch.device, evaluation: EvaluationConfig, *, seed: int
) -> str:
    """Loads an exported model with `from_pretrained` and continues `evaluation.prompt`.

    Args:
        folder: Folder of the export.
        device: Device to generate on.
        evaluation: Prompt, and number of tokens to generate.
        seed: Seed of the sampling.
    """
    # kernels of generation would take longer to tune than to run
    with kernels.disable_tuning_then_forget_choices_made():
        return sample_prompt_with_continuation(
            AutoModelForCausalLM.from_pretrained(folder, device_map=device),
            AutoTokenizer.from_pretrained(folder),
            prompt=evaluation.prompt,
            new_tokens=evaluation.sample_tokens,
            seed=seed,
            temperature=evaluation.sample_temperature,
        )


def sample_prompt_with_continuation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str,
    new_tokens: int,
    seed: int,
    temperature: float = 0.8,
) -> str:
    """Continues a prompt by sampling token by token; the same seed gives the same text.

    Args:
        model: A transformers model with `generate`, in evaluation mode.
        tokenizer: The model's tokenizer.
        prompt: Text to continue; an empty one starts a document.
        new_tokens: Largest number of tokens; the end-of-document token ends the text earlier.
        seed: Seed of the sampling; the process's random state is not changed.
        temperature: Divisor of the logits.

    Returns:
        The prompt and its continuation.
    """
    end: Any = tokenizer.eos_token_id
    start: Any = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prompt_ids: Any = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    settings = GenerationSettings(max_new_tokens=new_tokens, temperature=temperature, seed=seed)
    [continuation] = generate_continuations(
        model, [prompt_ids or [start]], settings, padding_token=end
    )
    return f"{prompt}{tokenizer.decode(continuation, skip_special_tokens=True)}"
