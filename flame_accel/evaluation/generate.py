"""Generates text: the sample that a run logs at its end. Scoring is in `validate`."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from flame_accel import kernels
from flame_accel.config import EvaluationConfig


def sample_text_from_export(
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
    with kernels.tuning_disabled():
        return sample_text(
            AutoModelForCausalLM.from_pretrained(folder, device_map=device),
            AutoTokenizer.from_pretrained(folder),
            prompt=evaluation.prompt,
            new_tokens=evaluation.sample_tokens,
            seed=seed,
        )


def sample_text(
    model: Any,
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
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    inputs = torch.tensor([ids or [start]], device=model.device)
    on_gpu = model.device.type == "cuda"
    # fla's delta rule does not support fp32 on a GPU
    half = torch.autocast("cuda", torch.bfloat16, enabled=on_gpu)
    with torch.random.fork_rng(devices=[model.device] if on_gpu else []), torch.no_grad(), half:
        torch.manual_seed(seed)
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            pad_token_id=tokenizer.eos_token_id,
        )
    continuation = tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True)
    return f"{prompt}{continuation}"
