"""What the generated environments share: the vocabulary, split-disjoint sampling, messages, and argument checks.

A task's split is decided by the hash of what it asks (never by its seed or index), so train and eval are disjoint by
construction, for every seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rollout.contracts import ToolCall, ToolSpec
from rollout.splits import split_of
from rollout.types import Message, Split

ITEMS = ("lamp", "chair", "clock", "candle", "hammer", "kettle", "ladder", "mirror")
ANIMALS = ("cat", "dog", "horse", "eagle", "tiger", "rabbit", "otter", "camel")
PLACES = ("attic", "barn", "cellar", "garage", "garden", "kitchen", "library", "office")
"""Three kinds of words, disjoint: a slot of a question takes one kind, so a small model can tell slots apart."""

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
    """Something to ask from `split`, and the generator that chose it. A pure function of its arguments."""
    rng = random.Random(f"{environment}/{seed}/{split}/{index}")
    while True:
        asked = sample(rng)
        if split_of(f"{environment}/{content(asked)}") == split:
            return asked, rng


def function_tool(name: str, description: str, parameters: Mapping[str, str]) -> ToolSpec:
    """A tool all of whose parameters (name → JSON type) are required."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in parameters.items()},
                "required": list(parameters),
            },
        },
    }


def checked_arguments(call: ToolCall, tools: tuple[ToolSpec, ...]) -> dict[str, Any] | str:
    """The call's arguments if they are what the tool's schema asks for, else the error text to show the model."""
    by_name = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in tools}
    if call.name not in by_name:
        return f"error: unknown tool {call.name!r}; there are {', '.join(sorted(by_name))}"
    wanted = by_name[call.name]
    if set(call.arguments) != set(wanted):
        return f"error: {call.name} takes exactly {', '.join(wanted)}"
    checked = {key: _typed(value, wanted[key]["type"]) for key, value in call.arguments.items()}
    wrong = [key for key, value in checked.items() if value is None]
    if wrong:
        return f"error: {wrong[0]} must be of type {wanted[wrong[0]]['type']}"
    return checked


def _typed(value: Any, kind: str) -> Any:
    """`value` as a JSON type, or None. GLM-4.5 writes strings bare, so 42 may have been meant as a string."""
    if kind == "string":
        return value if isinstance(value, str) else json.dumps(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def says(content: str, reasoning: str) -> Message:
    """An assistant message that answers."""
    return {"role": "assistant", "content": content, "reasoning_content": reasoning}


def calls(call: ToolCall, reasoning: str, result: str) -> list[Message]:
    """An assistant message that calls one tool, and the tool's answer."""
    function = {"name": call.name, "arguments": call.arguments}
    spoken = {
        "role": "assistant",
        "content": "",
        "reasoning_content": reasoning,
        "tool_calls": [{"type": "function", "function": function}],
    }
    return [spoken, {"role": "tool", "content": result}]
