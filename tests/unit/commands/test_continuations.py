"""Continuations are printed as they come."""

import io

from flame_accel.commands.continuations import stream_continuation_without_prompt_to_stdout
from flame_accel.data import load_tokenizer
from flame_accel.evaluation.generate import GenerationSettings
from flame_accel.prompt_files import Prompt
from tests.helpers.model_configs import tiny_generator


def test_tokens_are_printed_as_they_come(monkeypatch):
    model, tokenizer = tiny_generator("gla", vocab_size=258), load_tokenizer("byte", False)
    steps_at_write, steps = [], []
    model.register_forward_hook(lambda *_: steps.append(1))

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            if text.strip():
                steps_at_write.append(len(steps))
            return super().write(text)

    monkeypatch.setattr("sys.stdout", Screen())
    settings = GenerationSettings(max_new_tokens=200, temperature=1.0)
    stream_continuation_without_prompt_to_stdout(
        model, tokenizer, Prompt(content="abc", where="here"), settings, chat=False
    )
    # whole words, whenever one has ended
    assert len(set(steps_at_write)) > 1 and steps_at_write[0] < 100 < len(steps)
