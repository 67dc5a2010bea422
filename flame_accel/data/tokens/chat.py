"""Conversations to text by a tokenizer's chat template, and which of it the assistant says.

The loss is for what the assistant writes, the mark that ends its turn included. A template says
where that is with ``{% generation %}``; of one that does not, every beginning of the conversation
is rendered, up to an assistant's turn and through it. Nothing here tokenises.
"""

import os
import re
import threading
from datetime import date
from typing import Any, NamedTuple, cast

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Conversation, Skipped
from flame_accel.data.tokens.tokenizer import WHERE

TODAY = date(2024, 7, 26)
"""The date of every conversation, where a template asks for it: what Llama 3 takes without a clock.
The same data must give the same tokens tomorrow."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
ADD_MARKERS = (
    "put {% generation %} and {% endgeneration %} around what the assistant says in its "
    "chat_template.jinja"
)

# transformers keeps one environment for a template, which notes the spans of a single rendering
_RENDERING = threading.Lock()
os.register_at_fork(
    before=_RENDERING.acquire,
    after_in_parent=_RENDERING.release,
    after_in_child=_RENDERING.release,
)


class Rendered(NamedTuple):
    """A conversation as the model sees it."""

    text: str
    spans: list[tuple[int, int]]
    """What the assistant says, from a character up to another, in order."""


class ChatTemplate:
    """Renders conversations; from any thread, and after a fork.

    Raises:
        UserError: the tokenizer has no chat template, or it needs the time of day.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "the data has conversations, but the tokenizer has no chat template",
                where=WHERE,
                remedy="take the tokenizer of a chat model, or put a chat_template.jinja beside it",
            )
        template = tokenizer.get_chat_template()
        self._template = CLOCK.sub(lambda match: repr(TODAY.strftime(match[2])), template)
        if "strftime_now(" in self._template:
            raise UserError(
                "the chat template asks for the time in a form that it computes",
                where=WHERE,
                remedy="write a date into the template: the same data must give the same tokens",
            )
        self._special_tokens: dict[str, Any] = tokenizer.special_tokens_map
        self._has_markers = GENERATION.search(template) is not None

    def render(self, conversation: Conversation) -> Rendered | Skipped:
        """Text of a conversation; what the template refuses, or without an assistant, is damaged.

        Raises:
            UserError: the template is not valid, or what it writes for the beginning of a
                conversation is not the beginning of what it writes for all of it.
        """
        if not conversation:
            return Skipped("empty", what="a conversation without messages")
        wrong = _what_is_wrong(conversation)
        if wrong:
            return Skipped("damaged", what=wrong)
        # data sets hold null for what a message has not; templates ask whether a key is there
        messages = [{k: v for k, v in m.items() if v is not None} for m in conversation]
        try:
            text, spans = self._render(messages)
            if not self._has_markers:
                spans = self._spans(messages, text)
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template is not valid: {error}",
                where=WHERE,
                remedy="correct the tokenizer's chat_template.jinja",
            ) from error
        # what a template does to values of a wrong type raises Python's own error
        except (TemplateError, TypeError) as error:
            return Skipped("damaged", what=f"the chat template refuses it: {error}")
        return Rendered(text, spans)

    def _render(
        self, messages: Conversation, *, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        with _RENDERING:
            rendered = render_jinja_template(
                conversations=[messages],
                chat_template=self._template,
                return_assistant_tokens_mask=self._has_markers,
                add_generation_prompt=prompt,
                **self._special_tokens,
            )
        # transformers annotates it as a string
        texts, spans = cast(tuple[list[str], list[list[tuple[int, int]]]], rendered)
        return texts[0], spans[0] if spans else []

    def _spans(self, messages: Conversation, text: str) -> list[tuple[int, int]]:
        """Each assistant's turn, from the end of its prompt to the end of what it adds."""
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, _ = self._render(messages[:turn], prompt=True)
            through, _ = self._render(messages[: turn + 1])
            if not (text.startswith(through) and through.startswith(before)):
                raise UserError(
                    "the chat template does not show where the assistant speaks: what it writes "
                    f"for the messages up to number {turn + 1} is not the beginning of what it "
                    "writes for the conversation",
                    where=WHERE,
                    remedy=ADD_MARKERS,
                )
            spans.append((len(before), len(through)))
        return spans


def mark_targets(starts: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """Which tokens start inside of a span, bool [n]; `starts` are their first characters [n]."""
    targets = np.zeros(len(starts), dtype=bool)
    for begin, end in spans:
        targets |= (starts >= begin) & (starts < end)
    return targets


def _what_is_wrong(conversation: Conversation) -> str | None:
    for number, message in enumerate(conversation, 1):
        # jinja writes nothing for a key that is not there, so a template would not notice
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"message {number} has no role"
        if message.get("content") is None and not message.get("tool_calls"):
            return f"message {number} has no content"
    roles = {message["role"] for message in conversation}
    if "assistant" not in roles:
        return f"no assistant turn, only {', '.join(sorted(roles))}"
    return None
