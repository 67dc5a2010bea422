"""Continuations of prompts: streamed to standard output, or as records of a file of prompts.

Arguments and prompts are read in `generate`; tokens are chosen in `evaluation/generate.py`.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flame_accel.prompt_files import Messages, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from flame_accel.evaluation.generate import GenerationSettings

    ResultRecord = dict[str, str | int | Messages]


TOKENS_AT_ONCE = 4096
"""Tokens of a long prompt that fla's models read in one pass: memory does not grow with it."""


def stream_continuation_without_prompt_to_stdout(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    settings: "GenerationSettings",
    *,
    chat: bool,
) -> None:
    """Prints the continuation of one prompt as it comes; of a beam search, when it has ended."""
    from transformers import TextStreamer

    from flame_accel.evaluation.generate import check_prompt_fits_context, generate_continuations
    from flame_accel.evaluation.prompts import encode_nonempty_prompt_or_raise

    ids = encode_nonempty_prompt_or_raise(tokenizer, prompt, text_is_user_message=chat)
    check_prompt_fits_context(model, len(ids), settings.max_new_tokens)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    (continuation,) = generate_continuations(
        model,
        [ids],
        settings,
        padding_token=_pad_eos_or_any_token_id(tokenizer),
        streamer=streamer if settings.beams == 1 else None,
        prefill_chunk_tokens=_prefill_chunk_tokens(model),
    )
    if settings.beams > 1:
        print(tokenizer.decode(continuation, skip_special_tokens=True))


def generate_result_records(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    settings: "GenerationSettings",
    chat: bool,
    batch_size: int,
) -> Iterator["ResultRecord"]:
    """The continuation of every prompt in their order: `prompt` or `messages`, `text`, `tokens`.

    Args:
        model: As `load_model_and_tokenizer` returns it.
        tokenizer: The model's tokenizer.
        prompts: All of them; they are encoded before the first is continued.
        settings: How tokens are chosen; every batch begins with the seed.
        chat: Whether texts are messages for the chat template.
        batch_size: Prompts that are continued at once, padded on the left.
    """
    from flame_accel.evaluation.generate import check_prompt_fits_context, generate_continuations
    from flame_accel.evaluation.prompts import encode_nonempty_prompt_or_raise

    encoded = [
        encode_nonempty_prompt_or_raise(tokenizer, prompt, text_is_user_message=chat)
        for prompt in prompts
    ]
    check_prompt_fits_context(model, max(map(len, encoded)), settings.max_new_tokens)
    pairs = iter(zip(prompts, encoded, strict=True))
    while batch := list(islice(pairs, batch_size)):
        continuations = generate_continuations(
            model,
            [ids for _, ids in batch],
            settings,
            padding_token=_pad_eos_or_any_token_id(tokenizer),
            prefill_chunk_tokens=_prefill_chunk_tokens(model),
        )
        for (prompt, _), continuation in zip(batch, continuations, strict=True):
            text = tokenizer.decode(continuation, skip_special_tokens=True)
            assert isinstance(text, str)
            yield {**prompt.record, "text": text, "tokens": len(continuation)}


def write_json_lines(records: Iterable["ResultRecord"], new_file: Path | None) -> None:
    """Writes a line as soon as a record is there, to the file or to stdout.

    The file must not exist yet.
    """
    file = sys.stdout if new_file is None else new_file.open("x", encoding="utf-8")
    try:
        for record in records:
            print(json.dumps(record, ensure_ascii=False), file=file, flush=True)
    finally:
        if new_file is not None:
            file.close()


def _pad_eos_or_any_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def _prefill_chunk_tokens(model: "PreTrainedModel") -> int | None:
    """Tokens that the model can read in one pass of several; None if it reads a prompt in one."""
    from fla.models.generation_utils import FLAGenerationMixin

    from flame_accel.diagnosis.conformance.known_issues import known_issue_reasons_by_law
    from flame_accel.models.norms import base_model_type

    config, device = model.config, "cuda" if model.device.type == "cuda" else "cpu"
    if not isinstance(model, FLAGenerationMixin) or not config.use_cache:
        return None
    broken = known_issue_reasons_by_law(base_model_type(config), device)
    return None if "reads in pieces" in broken else TOKENS_AT_ONCE
