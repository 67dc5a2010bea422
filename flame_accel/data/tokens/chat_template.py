"""Renders conversations with a tokenizer's chat template and finds what the assistant says.

The loss is computed on what the assistant writes, including the marker that ends its turn. A
template marks it with ``{% generation %}``; without these tags the conversation is rendered up to
each of the assistant's turns and up to the end of it. Nothing here tokenizes.
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
from flame_accel.data.documents import CharacterSpan, Conversation, Skipped
from flame_accel.data.tokens.time_limit import TimeLimitReached, time_limit
from flame_accel.data.tokens.tokenizer import TOKENIZER_OPTION

FIXED_DATE = date(2024, 7, 26)
"""Date of every conversation if a template asks for it; Llama 3's default without a clock. The
same data must give the same tokens tomorrow."""
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
CLOCK_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
RENDER_SECONDS = 30
"""For one text; a template renders thousands of messages in a second."""
PYTHON_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError)
ADD_MARKERS = (
    "put {% generation %} and {% endgeneration %} around what the assistant says in its "
    "chat_template.jinja"
)

# transformers keeps one environment per template, which records the spans of a single rendering
_RENDER_LOCK = threading.Lock()
os.register_at_fork(
    before=_RENDER_LOCK.acquire,
    after_in_parent=_RENDER_LOCK.release,
    after_in_child=_RENDER_LOCK.release,
)


class RenderedConversation(NamedTuple):
    """A conversation as the model sees it."""

    text: str
    assistant_spans: list[CharacterSpan]
    """What the assistant says: [start, stop) in characters of `text`, in order."""


class ChatTemplate:
    """Renders conversations; safe in any thread and after a fork.

    Raises:
        UserError: the tokenizer has no chat template, or the template needs the time of day.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "the data has conversations, but the tokenizer has no chat template",
                where=TOKENIZER_OPTION,
                remedy="use the tokenizer of a chat model, or put a chat_template.jinja next to it",
            )
        template = tokenizer.get_chat_template()
        self._template = CLOCK_CALL.sub(lambda match: repr(FIXED_DATE.strftime(match[2])), template)
        if "strftime_now(" in self._template:
            raise UserError(
                "the chat template asks for the time in a format that it computes",
                where=TOKENIZER_OPTION,
                remedy="write a date into the template: the same data must give the same tokens",
            )
        self._special_tokens: dict[str, Any] = tokenizer.special_tokens_map
        self._has_markers = GENERATION_TAG.search(template) is not None

    def render(self, conversation: Conversation) -> RenderedConversation | Skipped:
        """Render a conversation; one without an assistant or refused by the template is damaged.

        Raises:
            UserError: the template is not valid, or the text of a conversation does not start with
                the text of its first messages.
        """
        if not conversation:
            return Skipped("empty", what="a conversation without messages")
        problem = _find_conversation_fault(conversation)
        if problem:
            return Skipped("damaged", what=problem)
        # datasets hold null for what a message does not have; templates ask whether a key exists
        messages = [{k: v for k, v in m.items() if v is not None} for m in conversation]
        try:
            text, spans = self._render_template(messages)
            if not self._has_markers:
                spans = self._find_assistant_spans(messages, text)
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template is not valid: {error}",
                where=TOKENIZER_OPTION,
                remedy="correct the tokenizer's chat_template.jinja",
            ) from error
        except TimeLimitReached:
            raise UserError(
                f"the chat template takes more than {RENDER_SECONDS} s for one conversation: it "
                "loops",
                where=TOKENIZER_OPTION,
                remedy="correct the tokenizer's chat_template.jinja, or use another tokenizer",
            ) from None
        # a template that is given values of a wrong type raises one of Python's own errors
        except (TemplateError, *PYTHON_ERRORS) as error:
            what = str(error) or type(error).__name__
            return Skipped("damaged", what=f"the chat template refuses it: {what}")
        return RenderedConversation(text, spans)

    def _render_template(
        self, messages: Conversation, *, add_generation_prompt: bool = False
    ) -> RenderedConversation:
        """Render messages; the spans are those of generation tags, none without such tags."""
        with _RENDER_LOCK, time_limit(RENDER_SECONDS):
            rendered = render_jinja_template(
                conversations=[messages],
                chat_template=self._template,
                return_assistant_tokens_mask=self._has_markers,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        # transformers annotates it as a string
        texts, spans = cast(tuple[list[str], list[list[CharacterSpan]]], rendered)
        return RenderedConversation(texts[0], spans[0] if spans else [])

    def _find_assistant_spans(self, messages: Conversation, text: str) -> list[CharacterSpan]:
        """Span of each of the assistant's turns: from the end of its prompt to the end of it."""
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, _ = self._render_template(messages[:turn], add_generation_prompt=True)
            through, _ = self._render_template(messages[: turn + 1])
            if not (text.startswith(through) and through.startswith(before)):
                raise UserError(
                    "the chat template does not show where the assistant speaks: what it writes "
                    f"for the messages up to number {turn + 1} is not the beginning of what it "
                    "writes for the conversation",
                    where=TOKENIZER_OPTION,
                    remedy=ADD_MARKERS,
                )
            spans.append((len(before), len(through)))
        return spans


def mask_tokens_in_spans(token_starts: np.ndarray, spans: list[CharacterSpan]) -> np.ndarray:
    """Which tokens start inside a span, bool [n]; `token_starts` are first characters, int [n]."""
    inside = np.zeros(len(token_starts), dtype=bool)
    for start, stop in spans:
        inside |= (token_starts >= start) & (token_starts < stop)
    return inside


def _find_conversation_fault(conversation: Conversation) -> str | None:
    """What is wrong with a conversation, whatever the template; None: nothing."""
    for number, message in enumerate(conversation, 1):
        # jinja writes nothing for a missing key, so a template would not notice
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"message {number} has no role"
        if message.get("content") is None and not message.get("tool_calls"):
            return f"message {number} has no content"
    roles = {message["role"] for message in conversation}
    if "assistant" not in roles:
        return f"no assistant turn, only {', '.join(sorted(roles))}"
    return None
