"""Texts that the model in training writes at each validation, from the prompts of a file.

The sample of the exported model, at the end of a run, is made in `final_report`.
"""

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from flame_accel import kernels
from flame_accel.config.secrets import mask_secrets
from flame_accel.evaluation.generate import (
    GenerationSettings,
    check_prompt_fits_context,
    generate_continuations,
)
from flame_accel.evaluation.prompts import encode_nonempty_prompt_or_raise
from flame_accel.observe import get_logger
from flame_accel.observe.evaluations_file import Sample
from flame_accel.parallel import run_on_main_and_broadcast, unwrap_model
from flame_accel.prompt_files import Prompt, read_text_or_jsonl_prompts

log = get_logger()


class _EncodedPrompt(NamedTuple):
    """A prompt, as it is shown and as tokens."""

    shown: str
    token_ids: list[int]


class ValidationSamples:
    """Continues prompts with the model in training. Every rank has one, and all call it alike.

    Args:
        accelerator: The run's accelerator.
        tokenizer: The model's tokenizer.
        prompt_file: As `read_text_or_jsonl_prompts` reads it.
        settings: How tokens are chosen.

    Raises:
        UserError: The file cannot be read, or a prompt has no token.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        prompt_file: Path,
        settings: GenerationSettings,
    ) -> None:
        self._accelerator, self._tokenizer, self._settings = accelerator, tokenizer, settings
        self._failed = False

        def read() -> list[_EncodedPrompt]:
            return [
                _EncodedPrompt(
                    _shown(prompt),
                    encode_nonempty_prompt_or_raise(tokenizer, prompt, text_is_user_message=False),
                )
                for prompt in read_text_or_jsonl_prompts(prompt_file)
            ]

        self._prompts = run_on_main_and_broadcast(accelerator, read)

    def generate(self, model: nn.Module, *, step: int) -> list[Sample]:
        """Generates and logs a text for each prompt. Every rank must call it.

        A model that cannot generate has no samples: the first failure is logged, and training goes
        on.

        Args:
            model: The model as Accelerate prepared it, in evaluation mode.
            step: Number of completed steps, for the log.
        """
        if self._failed:
            return []
        try:
            # kernels of generation would take longer to tune than to run, and compile for longer
            with kernels.disable_tuning_then_forget_choices_made(), _without_compilation():
                samples = [self._continue_prompt(model, prompt) for prompt in self._prompts]
        except Exception as error:
            self._failed = True
            log.warning("no samples at validation: %s: %s", type(error).__name__, error)
            return []
        for sample in samples:
            log.info("step %d: sample:\n%s%s", step, sample["prompt"], sample["text"])
        return samples

    def _continue_prompt(self, model: nn.Module, prompt: _EncodedPrompt) -> Sample:
        inner, tokenizer = unwrap_model(self._accelerator, model), self._tokenizer
        check_prompt_fits_context(inner, len(prompt.token_ids), self._settings.max_new_tokens)
        end = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        # one at a time: not every model can be padded on the left
        [continuation] = generate_continuations(
            inner,
            [prompt.token_ids],
            self._settings,
            padding_token=end if isinstance(end, int) else 0,
            wait_for_other_ranks=self._accelerator.num_processes > 1,
        )
        text = tokenizer.decode(continuation, skip_special_tokens=True)
        assert isinstance(text, str)
        return Sample(prompt=prompt.shown, text=mask_secrets(text))


def _shown(prompt: Prompt) -> str:
    content = prompt.content
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return mask_secrets(text)


def _without_compilation() -> AbstractContextManager[object]:
    """Compiled modules run as they are written; what was compiled for training stays.

    Generation has a shape for each token, and torch stops compiling a function after a few.
    """
    # what compiles; importing it takes long
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
