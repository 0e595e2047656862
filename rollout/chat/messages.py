"""Messages before they are rendered: special tokens in them defused, and reasoning told apart from the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollout.chat.text import defused
from rollout.types import Message


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The tokens that must not be spelled out by any text, the longer ones first, as `defused` wants them."""
    return tuple(sorted(tokenizer.get_added_vocab(), key=len, reverse=True))


def defused_message(message: Message, special: Sequence[str], *, keep_reasoning: bool) -> Message:
    """The message with its special tokens defused, in all that is text. Reasoning that an assistant's content holds
    between <think> and </think> is told apart first."""
    if message["role"] != "assistant":
        return {**message, "content": defused(message["content"], special)}
    message = told_apart(message)
    kept = {key: value for key, value in message.items() if keep_reasoning or key != "reasoning_content"}
    return {key: value if key == "role" else defused_all(value, special) for key, value in kept.items()}


def defused_all(value: Any, special: Sequence[str]) -> Any:
    """A plain value with the special tokens of all its texts defused."""
    if isinstance(value, str):
        return defused(value, special)
    if isinstance(value, dict):
        return {defused_all(key, special): defused_all(item, special) for key, item in value.items()}
    return [defused_all(item, special) for item in value] if isinstance(value, list | tuple) else value


def told_apart(message: Message) -> Message:
    """An assistant's message whose content holds `</think>`, with what stands before that as its reasoning, as in the
    templates of GLM-4.5 and Qwen3. The <think> that begins it may be left out."""
    before, end, content = (message.get("content") or "").partition("</think>")
    if not end or message.get("reasoning_content"):
        return message
    _, opened, inside = before.partition("<think>")
    return {**message, "content": content.strip(), "reasoning_content": inside if opened else before}
