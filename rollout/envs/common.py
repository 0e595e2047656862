"""Parts that the generated environments share: the vocabulary, sampling in disjoint splits, and messages.

A task's split is decided by the hash of what it asks (never by its seed or index), so train and eval are disjoint by
construction, for every seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from rollout.contracts import ToolCall
from rollout.splits import split_of
from rollout.types import Message, Split

ITEMS = ("lamp", "chair", "clock", "candle", "hammer", "kettle", "ladder", "mirror")
ANIMALS = ("cat", "dog", "horse", "eagle", "tiger", "rabbit", "otter", "camel")
PLACES = ("attic", "barn", "cellar", "garage", "garden", "kitchen", "library", "office")
"""Three disjoint kinds of words. No kind goes into two slots of a question, so a small model can tell slots apart."""

Asked = TypeVar("Asked")


def draw(
    sample: Callable[[random.Random], Asked],
    content: Callable[[Asked], str],
    *,
    environment: str,
    index: int,
    seed: int,
    split: Split,
) -> tuple[Asked, random.Random]:
    """Draw something to ask from `split`. Return it and the random generator that drew it.

    This is a pure function of its arguments.
    """
    rng = random.Random(f"{environment}/{seed}/{split}/{index}")
    while True:
        asked = sample(rng)
        if split_of(f"{environment}/{content(asked)}") == split:
            return asked, rng


def says(content: str, reasoning: str) -> Message:
    """Return an assistant message that answers."""
    return {"role": "assistant", "content": content, "reasoning_content": reasoning}


def calls(call: ToolCall, reasoning: str, result: str) -> list[Message]:
    """Return an assistant message that calls one tool, and the tool's result."""
    function = {"name": call.name, "arguments": call.arguments}
    spoken = {
        "role": "assistant",
        "content": "",
        "reasoning_content": reasoning,
        "tool_calls": [{"type": "function", "function": function}],
    }
    return [spoken, {"role": "tool", "content": result}]
