"""A demonstration as the tokens that an agent loop would see for the same turns: opened, sampled, bridged."""

from __future__ import annotations

from collections.abc import Sequence

from rollout.contracts import Chat, History, ToolSpec
from rollout.types import Message


def render_demonstration(
    chat: Chat, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool
) -> tuple[list[int], list[int]]:
    """Return token ids and loss mask (1 where the assistant speaks) of a conversation; both have length L.

    Only the turns after the last user message are trained. Those before are rendered as the format shows history.

    Raises:
        ValueError: assistant messages and tool results do not alternate as in an agent loop.
    """
    first = 1 + max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    if first == 0 or first == len(messages):
        raise ValueError("a demonstration needs a user message and an assistant message after it")
    ids = chat.open(messages[:first], tools, thinking)
    mask = [0] * len(ids)
    position = first
    while position < len(messages):
        results = _results_after(messages, position)
        spoken = chat.say(messages[position], thinking)
        ids, mask = ids + spoken, mask + [1] * len(spoken)
        position += 1 + len(results)
        if results:
            shown = chat.bridge(
                ids, results, thinking, History(messages=messages[: position - len(results)], tools=tools)
            )
            if shown.kind == "fork":
                raise ValueError(
                    "the chat format shows a tool's result only in a new rendering of the whole conversation, so its "
                    "turns cannot be learned as one row; use another model.renderer"
                )
            ids, mask = ids + shown.token_ids, mask + [0] * len(shown.token_ids)
    if not mask[-1]:
        raise ValueError("a demonstration ends with an assistant message, not with a tool result")
    return ids, mask


def _results_after(messages: Sequence[Message], position: int) -> list[Message]:
    """Return the tool results that directly follow the assistant message at `position`."""
    if messages[position]["role"] != "assistant":
        raise ValueError(f"message {position} has role {messages[position]['role']!r} where the assistant should speak")
    end = position + 1
    while end < len(messages) and messages[end]["role"] == "tool":
        end += 1
    last = end == len(messages) == position + 1  # it may end with calls that nobody answers
    if not last and bool(messages[position].get("tool_calls")) != (end > position + 1):
        raise ValueError(f"message {position}: a turn has tool results after it exactly when it calls tools")
    return [{"role": "tool", "content": str(message["content"])} for message in messages[position + 1 : end]]
