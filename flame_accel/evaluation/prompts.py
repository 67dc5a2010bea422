"""Prompts: read from a file, and turned into tokens. What continues them lives in `generate`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from flame_accel.config import UserError

Messages = list[dict[str, str]]
"""A conversation: what a chat template takes, with `role` and `content`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A text to continue, or a conversation to answer."""

    content: str | Messages
    where: str
    """Where it comes from, for errors: an option, or file and line."""

    @property
    def record(self) -> dict[str, str | Messages]:
        """What a file of results repeats of it."""
        return {"prompt" if isinstance(self.content, str) else "messages": self.content}


def read_text_or_jsonl_prompts(file: Path) -> Iterator[Prompt]:
    """The prompts of a file: of `.jsonl` an object per line, else every line that is not empty.

    Lines end with LF or CRLF. An object has `prompt`, a text, or `messages`, a conversation.

    Raises:
        UserError: The file cannot be read, or a line is neither.
    """
    try:
        # str.splitlines would also end a prompt at a form feed or U+2028, which texts contain
        text = file.read_bytes().decode("utf-8")
        lines = [line.removesuffix("\r") for line in text.split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read: {error}", where=str(file), remedy="give a text or JSONL file in UTF-8"
        ) from error
    if not any(line.strip() for line in lines):
        raise UserError(
            "holds no prompt", where=str(file), remedy="write one prompt, or JSON object, per line"
        )
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{file}:{number}"
            content = _parse_prompt_or_messages(line, where) if file.suffix == ".jsonl" else line
            yield Prompt(content=content, where=where)


def _parse_prompt_or_messages(line: str, where: str) -> str | Messages:
    remedy = 'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"is no JSON: {error}", where=where, remedy=remedy) from error
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if isinstance(prompt, str):
        return prompt
    messages = record.get("messages") if isinstance(record, dict) else None
    if isinstance(messages, list) and messages and all(map(_is_role_and_content, messages)):
        return messages
    raise UserError("has neither a prompt nor messages", where=where, remedy=remedy)


def _is_role_and_content(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, chat: bool) -> list[int]:
    """The tokens of a prompt, with the special tokens that the tokenizer puts before a text.

    Args:
        tokenizer: The model's tokenizer.
        prompt: A text or a conversation.
        chat: Whether a text is the first message of a conversation.

    Raises:
        UserError: It has no token, or a conversation meets no chat template or one that refuses it.
    """
    content = prompt.content
    if isinstance(content, str) and chat and content:
        content = [{"role": "user", "content": content}]
    token_ids: Any
    if isinstance(content, str):
        token_ids = tokenizer(content)["input_ids"] if content else []
    elif not tokenizer.chat_template:
        raise UserError(
            "the tokenizer of the model has no chat template",
            where=prompt.where,
            remedy="leave --chat out and give plain text, or put a chat_template.jinja next to it",
        )
    else:
        try:
            token_ids = tokenizer.apply_chat_template(
                content, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise UserError(
                f"the chat template refuses the messages: {error}",
                where=prompt.where,
                remedy="give the roles that it knows, in its order",
            ) from error
    if not token_ids:
        raise UserError(
            "the prompt is empty", where=prompt.where, remedy="give a text with at least one token"
        )
    return list(token_ids)
