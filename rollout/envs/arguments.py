"""Tools as JSON schemas, and the check of a model's arguments against them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import jsonschema

from rollout.contracts import ToolCall, ToolSpec

Schema = Mapping[str, Any]


def function_tool(
    name: str, description: str, parameters: Mapping[str, str | Schema], optional: Collection[str] = ()
) -> ToolSpec:
    """A tool in OpenAI form. A parameter is a JSON type or a whole JSON schema; all but the `optional` are required."""
    properties = {key: {"type": kind} if isinstance(kind, str) else dict(kind) for key, kind in parameters.items()}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": [key for key in parameters if key not in optional],
            },
        },
    }


def checked_arguments(call: ToolCall, tools: Collection[ToolSpec]) -> dict[str, Any] | str:
    """Return the call's arguments if they fit the tool's schema, or else an error text to show the model."""
    by_name = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    if call.name not in by_name:
        return f"error: unknown tool {call.name!r}; there are {', '.join(sorted(by_name))}"
    parameters = by_name[call.name]
    properties, required = parameters["properties"], parameters["required"]
    if not set(required) <= set(call.arguments) <= set(properties):
        optional = [key for key in properties if key not in required]
        more = f" and may take {', '.join(optional)}" if optional else ""
        return f"error: {call.name} takes {'' if optional else 'exactly '}{', '.join(required)}{more}"
    checked = {key: _typed(value, properties[key]) for key, value in call.arguments.items()}
    mistakes = [text for key, value in checked.items() if (text := _mistake(key, value, properties[key]))]
    return f"error: {mistakes[0]}" if mistakes else checked


def _typed(value: Any, schema: Schema) -> Any:
    """Convert a value to the type that the schema asks for, where the value may have been meant so.

    GLM-4.5 writes strings without quotes, so 42 may be meant as a string. To a JSON schema 1.0 is an integer.
    """
    kind = schema.get("type")
    if value is None and schema.get("nullable"):
        return None
    if kind == "string" and not isinstance(value, str):
        return json.dumps(value)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _mistake(key: str, value: Any, schema: Schema) -> str | None:
    if value is None and schema.get("nullable"):
        return None
    error = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(value)), None)
    if error is None:
        return None
    if error.validator == "type" and not error.path:
        return f"{key} must be of type {error.validator_value}"
    return f"{key}: {error.message}"
