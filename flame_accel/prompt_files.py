"""Prompts: what is read from a file or the command line, without torch; mistakes are said at once.

They are turned into tokens in `evaluation/prompts`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flame_accel.config import UserError
from flame_accel.json_text import parse_json_text

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

    Lines end with LF or CRLF; blank ones are skipped. An object has `prompt`, a text, or
    `messages`, a conversation.

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
        record = parse_json_text(line)
    except json.JSONDecodeError as error:
        raise UserError(f"is no JSON: {error}", where=where, remedy=remedy) from error
    problem = find_utf8_problem(json.dumps(record, ensure_ascii=False))
    if problem is not None:
        raise UserError(problem, where=where, remedy="escape characters as pairs, as JSON does")
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if prompt == "":
        raise UserError("the prompt is empty", where=where, remedy=remedy)
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


def find_utf8_problem(text: str) -> str | None:
    """What is wrong with a text that UTF-8 does not have, as part of a sentence; else None.

    Python represents bytes of the command line that are no UTF-8, and halves of pairs that JSON
    escapes, as surrogates.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"is not UTF-8: it contains {text[error.start]!r}"
    return None


def missing_chat_template(where: str) -> UserError:
    """The error of a conversation for a model that has no chat template."""
    return UserError(
        "the tokenizer of the model has no chat template",
        where=where,
        remedy="leave --chat out and give plain text, or put a chat_template.jinja next to it",
    )
