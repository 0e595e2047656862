"""Tool calls as JSON between <tool_call> and </tool_call>, the convention of Qwen3, Hermes and many others.

    <tool_call>
    {"name": "get", "arguments": {"name": "cat"}}
    </tool_call>

Values are typed by JSON itself, so no schema is needed to read them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rollout.contracts import AssistantTurn, ToolCall, ToolSpec

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_OPEN, _END_THINK, _THINK = "<tool_call>", "</think>", "<think>"
TOO_DEEP = "a tool call's argument is nested too deeply"
HEADER = "You may call one or more of these functions, which are given as JSON between <tools> and </tools>:\n<tools>\n"
FOOTER = (
    "\n</tools>\nTo call a function, write a JSON object with its name and its arguments between <tool_call> and "
    '</tool_call>:\n<tool_call>\n{"name": "a function", "arguments": {"a parameter": "its value"}}\n</tool_call>'
)


def described(tools: Sequence[ToolSpec]) -> str:
    """The instructions that tell a model of its tools and of the convention."""
    return HEADER + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + FOOTER


def written(calls: Sequence[dict[str, Any]]) -> str:
    """Calls in OpenAI form as a model writes them."""
    return "\n".join(f"<tool_call>\n{_json_of(call.get('function', call))}\n</tool_call>" for call in calls)


def _json_of(function: dict[str, Any]) -> str:
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # as OpenAI has them
        arguments = json.loads(arguments)
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)


def read_turn(text: str) -> AssistantTurn:
    """Parse what a model said in plain text: reasoning that ends with </think>, content, and calls.

    `malformed` is set when a call cannot be read or the reasoning is not closed. The turn then has no calls.
    """
    before, ends, content = text.partition(_END_THINK)
    if not ends:
        before, content = "", text
    reasoning = before.partition(_THINK)[2].strip() if _THINK in before else before.strip()
    problem = "the reasoning is not closed" if _THINK in content else None
    said = _CALL.sub("", content)
    if _OPEN in said:
        problem = problem or "a tool call is not closed"
        said = said.partition(_OPEN)[0]
    try:
        calls = () if problem else tuple(read_call(block) for block in _CALL.findall(content))
    except ValueError as error:
        calls, problem = (), str(error)
    return AssistantTurn(content=said.strip(), reasoning=reasoning, tool_calls=calls, malformed=problem)


def read_call(block: str) -> ToolCall:
    """Parse the JSON of one call.

    Raises:
        ValueError: it is no JSON object with a name and, as an object, arguments.
    """
    try:
        value = json.loads(block, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except ValueError as error:
        raise ValueError(f"a tool call is not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("a tool call names no function")
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError("a tool call's arguments are not a JSON object")
    return ToolCall(name=value["name"], arguments=arguments)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
