"""The values of a tool call's arguments from the text that a model wrote for them, by the tool's JSON schema.

GLM-4.5 and its like write strings as they are and all other values as JSON, so a text may mean two values: `123` is a
number or a string. The schema decides. Where it allows both, or there is none, the JSON value is meant. Text that no
value of the schema fits comes out as that JSON value, or as a string if it is no JSON; the environment then says what
is wrong with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema

from rollout.contracts import ToolSpec

Schema = Mapping[str, Any]

_DEFINITIONS = ("$defs", "definitions")
_SIMPLE = frozenset({"type", "description", "title", "default", "examples"})
"""The keys of a schema that only its type decides about."""


def schemas_of(name: str, tools: Sequence[ToolSpec]) -> dict[str, Schema]:
    """The schemas of a tool's parameters, each with the definitions that it may refer to. Empty for an unknown tool."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            parameters = _mapping(function.get("parameters"))
            shared = {key: parameters[key] for key in _DEFINITIONS if key in parameters}
            properties = _mapping(parameters.get("properties"))
            return {key: {**shared, **schema} for key, schema in properties.items() if isinstance(schema, Mapping)}
    return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def value_of(text: str, schema: Schema) -> Any:
    """Return the value that `text` means.

    Raises:
        RecursionError: it is JSON that is nested too deeply.
    """
    if schema.get("type") in ("string", ["string"]):
        return text
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text
    if isinstance(value, str) or value in (math.inf, -math.inf):  # no string is written as JSON, nor a 1e999
        return text
    if not schema or (isinstance(schema.get("type"), str) and schema.keys() <= _SIMPLE):
        return value
    return text if not _fits(value, schema) and _fits(text, schema) else value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _fits(value: Any, schema: Schema) -> bool:
    try:
        return bool(jsonschema.Draft202012Validator(schema).is_valid(value))
    except Exception:  # the schema is none, in one of many ways
        return False
