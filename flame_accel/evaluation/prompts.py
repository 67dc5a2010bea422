"""Prompts turned into tokens; read in `prompt_files`, continued in `generate`."""

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from flame_accel.config import UserError
from flame_accel.prompt_files import Prompt, missing_chat_template


def encode_nonempty_prompt_or_raise(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, text_is_user_message: bool
) -> list[int]:
    """The tokens of a prompt, with the special tokens that the tokenizer puts before a text.

    Args:
        tokenizer: The model's tokenizer.
        prompt: A text or a conversation.
        text_is_user_message: Whether a text is the first message of a conversation.

    Raises:
        UserError: It has no token, or a conversation meets no chat template or one that refuses it.
    """
    content = prompt.content
    if isinstance(content, str) and text_is_user_message and content:
        content = [{"role": "user", "content": content}]
    token_ids: Any
    if isinstance(content, str):
        token_ids = tokenizer(content)["input_ids"] if content else []
    elif not tokenizer.chat_template:
        raise missing_chat_template(prompt.where)
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
