"""Laws of generated text: one pass over the whole text is the truth that all roads must lead to.

Greedy generation, with a cache and without, batches with padding, beam search, and prompts read in
pieces. What a model cannot do must raise an error and never give other numbers.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from flame_accel.diagnosis.conformance.measures import (
    PRECISION,
    LawBroken,
    draw_same_token_ids_every_time,
    raise_law_broken_unless,
    relative_error,
    seed_and_compute_uncached_autocast_logits,
    set_torch_seed_and_autocast_unless_on_cpu,
)

PROMPT_LENGTHS = (1, 13, 62, 66)
"""One token, a few, and around the end of a chunk of 64."""
NEW_TOKENS = 4
BEAMS = 3
PIECES = (20, 1, 30, 15)
"""Tokens of the pieces of the longest prompt."""
PADDING_TOKEN = 7
"""A token that occurs in texts too: padding is known by the mask alone."""
NOISE = 0.1


def copy_for_eval_with_noise_on_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in evaluation mode whose layers all matter.

    Some start as the identity, or let hardly anything of earlier tokens through: whatever they
    computed, the laws would hold.
    """
    noisy = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in noisy.parameters():
            noise = torch.randn(weight.shape, generator=generator) * NOISE
            weight.add_(noise.to(weight.device, weight.dtype))
    return noisy


def check_greedy_generation_matches_one_pass(model: PreTrainedModel) -> None:
    """Greedy generation, token by token, is what one pass over the whole text computes.

    With a cache, unless the architecture's own default is to have none.
    """
    for prompt in _draw_prompts_of_all_lengths(model):
        generated = _generate_without_sampling(model, _pad_left([prompt]))
        _check_logits_match_one_pass(
            model, generated, [prompt], "token by token differs from one pass"
        )
        whole = seed_and_compute_uncached_autocast_logits(model, generated.sequences)[
            :, len(prompt) - 1 : -1
        ]
        chosen = whole.gather(-1, generated.sequences[:, len(prompt) :, None]).squeeze(-1)
        # two tokens may be as likely as each other within the tolerance
        margin = PRECISION[model.device.type].step * whole.abs().amax(-1)
        raise_law_broken_unless(
            bool((chosen >= whole.amax(-1) - margin).all()), "other tokens than in one pass"
        )


def check_padding_keeps_logits(model: PreTrainedModel) -> None:
    """A sequence has the same logits in a padded batch as alone, in generation and scoring."""
    prompts = _draw_prompts_of_all_lengths(model)
    _check_logits_match_one_pass(
        model,
        _generate_without_sampling(model, _pad_left(prompts)),
        prompts,
        "a padded batch generates otherwise",
    )
    tolerance = PRECISION[model.device.type].step
    for side, batch in (("left", _pad_left(prompts)), ("right", _pad_right(prompts))):
        logits = seed_and_compute_uncached_autocast_logits(
            model, batch.input_ids, attention_mask=batch.attention_mask
        )
        for row, prompt in enumerate(prompts):
            error = relative_error(
                logits[row, batch.attention_mask[row].bool()],
                seed_and_compute_uncached_autocast_logits(model, prompt[None])[0],
            )
            raise_law_broken_unless(
                error <= tolerance,
                f"a sequence of {len(prompt)} tokens padded on the {side} differs by {error:.1e}",
            )


def check_beam_scores_match_one_pass(model: PreTrainedModel) -> None:
    """Beams of a padded batch have the scores of one pass over their texts.

    The best has the score that a search finds without a cache and without padding.
    """
    prompts = _draw_prompts_of_all_lengths(model)
    batch = _pad_left(prompts)
    beams = _generate_without_sampling(model, batch, num_beams=BEAMS, num_return_sequences=BEAMS)
    scores = beams.beam_scores.view(len(prompts), BEAMS)
    texts = beams.sequences[:, batch.input_ids.shape[1] :].view(len(prompts), BEAMS, NEW_TOKENS)
    for prompt, prompt_texts, prompt_scores in zip(prompts, texts, scores, strict=True):
        whole = torch.cat((prompt.expand(BEAMS, -1), prompt_texts), 1)
        logits = seed_and_compute_uncached_autocast_logits(model, whole)[:, len(prompt) - 1 : -1]
        tolerance = PRECISION[model.device.type].step * logits.abs().max()
        expected = F.log_softmax(logits, -1).gather(-1, prompt_texts.unsqueeze(-1)).mean((1, 2))
        error = (prompt_scores - expected).abs().max()
        raise_law_broken_unless(
            bool(error <= tolerance),
            f"scores of beams differ by {error:.1e} from one pass after {len(prompt)} tokens",
        )
        alone = _generate_without_sampling(
            model, _pad_left([prompt]), num_beams=BEAMS, use_cache=False
        )
        error = (prompt_scores[0] - alone.beam_scores[0]).abs()
        raise_law_broken_unless(
            bool(error <= tolerance),
            f"the best of {BEAMS} beams differs by {error:.1e} after {len(prompt)} tokens",
        )


def check_cached_and_uncached_generation_match_one_pass(model: PreTrainedModel) -> None:
    """Generation with a cache has the logits of generation without; a model without one raises."""
    for prompt in _draw_prompts_of_all_lengths(model):
        for use_cache in (False, True):
            try:
                generated = _generate_without_sampling(
                    model, _pad_left([prompt]), use_cache=use_cache
                )
            except NotImplementedError:
                if use_cache and not model.config.use_cache:
                    continue
                raise
            _check_logits_match_one_pass(
                model,
                generated,
                [prompt],
                f"generation {'with' if use_cache else 'without'} a cache differs",
            )


def check_prompt_in_pieces_keeps_logits(model: PreTrainedModel) -> None:
    """A prompt that is read in pieces, one after the other, has the logits of one pass.

    The pieces of a padded batch may raise an error instead.
    """
    if not model.config.use_cache:
        # nothing is handed on from one piece to the next
        return
    prompt = _draw_prompts_of_all_lengths(model)[-1:]
    _check_pieces_match_one_pass(model, _pad_left(prompt), mask=False)
    # padding reaches into the second piece, and no row of any piece is empty
    batch = _pad_left([prompt[0][3:], prompt[0], prompt[0][12:]])
    try:
        _check_pieces_match_one_pass(model, batch, mask=True)
    except LawBroken:
        raise
    except Exception:
        return


def _check_pieces_match_one_pass(
    model: PreTrainedModel, batch: "PaddedBatch", *, mask: bool
) -> None:
    ids, attention_mask = batch
    cache, end, pieces = None, 0, []
    for piece in ids.split(PIECES, 1):
        end += piece.shape[1]
        with torch.no_grad(), set_torch_seed_and_autocast_unless_on_cpu(model):
            output = model(
                input_ids=piece,
                attention_mask=attention_mask[:, :end] if mask else None,
                past_key_values=cache,
                use_cache=True,
            )
        cache = output.past_key_values
        pieces.append(output.logits.float())
    logits = torch.cat(pieces, 1)
    for row, kept in enumerate(attention_mask.bool()):
        error = relative_error(
            logits[row, kept],
            seed_and_compute_uncached_autocast_logits(model, ids[row, kept][None])[0],
        )
        raise_law_broken_unless(
            error <= PRECISION[model.device.type].step,
            f"a prompt of {int(kept.sum())} tokens read in pieces differs by {error:.1e}",
        )


GENERATION_LAWS: dict[str, Callable[[PreTrainedModel], None]] = {
    "generates": check_greedy_generation_matches_one_pass,
    "leaves padding out": check_padding_keeps_logits,
    "searches with beams": check_beam_scores_match_one_pass,
    "caches": check_cached_and_uncached_generation_match_one_pass,
    "reads in pieces": check_prompt_in_pieces_keeps_logits,
}
"""The name of each law, and the function that raises where a model breaks it."""


class PaddedBatch(NamedTuple):
    """Sequences of several lengths in one batch."""

    input_ids: Tensor
    attention_mask: Tensor
    """0 for padding."""


def _pad_left(sequences: Sequence[Tensor]) -> PaddedBatch:
    longest = max(map(len, sequences))
    return PaddedBatch(
        *(
            torch.stack([F.pad(x, (longest - len(x), 0), value=fill) for x in values])
            for values, fill in (
                (sequences, PADDING_TOKEN),
                ([torch.ones_like(x) for x in sequences], 0),
            )
        )
    )


def _pad_right(sequences: Sequence[Tensor]) -> PaddedBatch:
    ids, mask = _pad_left([sequence.flip(0) for sequence in sequences])
    return PaddedBatch(ids.flip(1), mask.flip(1))


def _draw_prompts_of_all_lengths(model: PreTrainedModel) -> list[Tensor]:
    rows = draw_same_token_ids_every_time(model, (len(PROMPT_LENGTHS), max(PROMPT_LENGTHS)))
    return [row[:length] for row, length in zip(rows, PROMPT_LENGTHS, strict=True)]


class Generation(NamedTuple):
    """What a model generated."""

    sequences: Tensor
    """[B, T + new tokens]: prompts with their padding, and what follows."""
    step_logits: Tensor
    """[B, new tokens, V] in fp32, before any processing."""
    beam_scores: Tensor
    """[B] in fp32: mean log-probability of each sequence's new tokens; empty without beams."""


def _generate_without_sampling(
    model: PreTrainedModel, batch: PaddedBatch, **options: Any
) -> Generation:
    generate: Any = model.generate
    with torch.no_grad(), set_torch_seed_and_autocast_unless_on_cpu(model):
        output = generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=PADDING_TOKEN,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
            **options,
        )
    scores = getattr(output, "sequences_scores", None)
    return Generation(
        output.sequences,
        torch.stack(output.logits, dim=1).float(),
        torch.empty(0) if scores is None else scores.float(),
    )


def _check_logits_match_one_pass(
    model: PreTrainedModel,
    generated: Generation,
    prompts: Sequence[Tensor],
    broken_message_start: str,
) -> None:
    """Compares the logits of every generated token with one pass over its text, without padding."""
    for prompt, text, logits in zip(
        prompts, generated.sequences[:, -NEW_TOKENS:], generated.step_logits, strict=True
    ):
        whole = seed_and_compute_uncached_autocast_logits(model, torch.cat((prompt, text))[None])[
            0, len(prompt) - 1 : -1
        ]
        error = relative_error(logits, whole)
        raise_law_broken_unless(
            error <= PRECISION[model.device.type].step,
            f"{broken_message_start} by {error:.1e} after {len(prompt)} tokens",
        )
