"""The arguments of a tool call are checked against its schema: every JSON type, optional parameters, whole schemas."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.contracts import ToolCall
from rollout.envs.arguments import checked_arguments, function_tool

TOOLS = (
    function_tool(
        "f",
        "d",
        {
            "text": "string",
            "count": "integer",
            "size": "number",
            "on": "boolean",
            "items": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
            "what": {"type": "object"},
            "colour": {"enum": ["red", "blue"]},
        },
        optional=("size", "on", "items", "what", "colour"),
    ),
    function_tool("g", "d", {"x": "string"}),
)


def test_a_tool_is_described_as_the_chat_template_shows_it() -> None:
    tool = function_tool("f", "Does it.", {"text": "string", "what": {"type": "object"}}, optional=("what",))
    assert tool == {
        "type": "function",
        "function": {
            "name": "f",
            "description": "Does it.",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "what": {"type": "object"}},
                "required": ["text"],
            },
        },
    }


def check(**arguments: Any) -> dict[str, Any] | str:
    return checked_arguments(ToolCall(name="f", arguments={"text": "t", "count": 1, **arguments}), TOOLS)


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("text", "7", "7"),
        ("text", 7, "7"),
        ("text", None, "null"),
        ("text", [1], "[1]"),
        ("count", -3, -3),
        ("count", 2.0, 2),
        ("size", 1.5, 1.5),
        ("size", 2, 2),
        ("on", False, False),
        ("items", ["a"], ["a"]),
        ("what", {"a": [1]}, {"a": [1]}),
        ("colour", "red", "red"),
    ],
)
def test_what_a_schema_allows(key: str, value: Any, read: Any) -> None:
    checked = check(**{key: value})
    assert isinstance(checked, dict)
    assert checked[key] == read and type(checked[key]) is type(read)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("count", "three", "error: count must be of type integer"),
        ("count", True, "error: count must be of type integer"),
        ("count", 1.5, "error: count must be of type integer"),
        ("size", "1.5", "error: size must be of type number"),
        ("size", True, "error: size must be of type number"),
        ("on", 1, "error: on must be of type boolean"),
        ("items", ["a", 1], "error: items: 1 is not of type 'string'"),
        ("items", ["a"] * 3, "error: items: ['a', 'a', 'a'] is too long"),
        ("what", [], "error: what must be of type object"),
        ("colour", "green", "error: colour: 'green' is not one of ['red', 'blue']"),
        ("colour", None, "error: colour: None is not one of ['red', 'blue']"),
    ],
)
def test_what_it_does_not_allow_is_told_to_the_model(key: str, value: Any, error: str) -> None:
    assert check(**{key: value}) == error


def test_missing_and_surplus_arguments_are_told_with_what_there_is() -> None:
    told = "error: f takes text, count and may take size, on, items, what, colour"
    assert checked_arguments(ToolCall(name="f", arguments={"text": "t"}), TOOLS) == told
    assert check(more=1) == told
    assert checked_arguments(ToolCall(name="g", arguments={}), TOOLS) == "error: g takes exactly x"
    assert checked_arguments(ToolCall(name="h"), TOOLS) == "error: unknown tool 'h'; there are f, g"
