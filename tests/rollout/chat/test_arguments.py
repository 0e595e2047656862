"""A tool call that is rendered and parsed again has the arguments that it had, for every type that a schema names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rollout.chat.arguments import schemas_of, value_of
from rollout.chat.config import Glm45Settings
from rollout.chat.glm45 import Glm45
from rollout.chat.text import defused
from tests.support import glm45

CHAT = glm45()
SPECIAL = tuple(sorted(CHAT.tokenizer.get_added_vocab(), key=len, reverse=True))
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["123", " 1 ", "null", "true", "[1]", '"x"', "\n  indented\n", "NaN", ""]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
STRING_SCHEMAS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": ["string"]},
    {"type": "string", "minLength": 0, "description": "text"},
    {"allOf": [{"type": "string"}]},
    {"$ref": "#/$defs/text"},
    {"anyOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]},
]
OR_NULL: list[dict[str, Any]] = [
    {"type": ["string", "null"]},
    {"anyOf": [{"type": "string"}, {"type": "null"}]},
    {"oneOf": [{"$ref": "#/$defs/text"}, {"type": "null"}]},
]


def again(value: Any, schema: dict[str, Any] | None, chat: Glm45 = CHAT) -> Any:
    """The value after it was rendered as an argument and parsed."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": value}}}
    properties = {} if schema is None else {"a": schema}
    parameters = {"type": "object", "properties": properties, "$defs": {"text": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    spoken = chat.say({"role": "assistant", "content": "", "tool_calls": [call]}, True)
    turn = chat.parse(spoken, [tool])
    assert turn.malformed is None
    return turn.tool_calls[0].arguments["a"]


def harmless(text: str) -> bool:
    """Whether rendering leaves the text as it is, without a special token to defuse."""
    return defused(text, SPECIAL) == text


@pytest.mark.parametrize("schema", STRING_SCHEMAS, ids=json.dumps)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_a_string(schema: dict[str, Any], text: str) -> None:
    assume(harmless(text))
    assert again(text, schema) == text


@pytest.mark.parametrize("schema", OR_NULL, ids=json.dumps)
@settings(max_examples=60, deadline=None)
@given(text=st.none() | TEXTS)
def test_a_string_or_null(schema: dict[str, Any], text: str | None) -> None:
    """Only the text `null` itself cannot be told from null."""
    assume(text is None or (harmless(text) and text.strip() != "null"))
    assert again(text, schema) == text


@settings(max_examples=200, deadline=None)
@given(value=VALUES)
def test_a_value_of_any_other_type(value: Any) -> None:
    assume(not isinstance(value, str) and harmless(json.dumps(value, ensure_ascii=False)))
    kinds = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    for schema in ({"type": kinds[type(value)]}, {"type": [kinds[type(value)]]}, {}, None):
        found = again(value, schema)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("1", {"enum": ["1", "2"]}, "1"),
        ("1", {"enum": [1, 2]}, 1),
        ("5", {"const": "5"}, "5"),
        ("[1]", {"type": ["string", "integer"]}, "[1]"),
        ("1", {"type": ["string", "integer"]}, 1),
        ("1", {"anyOf": [{"type": "string", "pattern": "^x"}, {"type": "integer"}]}, 1),
        ("x", {"type": "integer"}, "x"),
        ("1.5", {"type": "integer"}, 1.5),
        (" 1 ", {"type": "integer"}, 1),
        ("NaN", {"type": "number"}, "NaN"),
        ("-Infinity", {}, "-Infinity"),
        ("-1e999", {}, "-1e999"),
        ("9" * 5000, {"type": "integer"}, "9" * 5000),
        ("1", {"$ref": "#/nowhere"}, 1),
        ("1", {"type": "nonsense"}, 1),
        ("1", {"anyOf": 5}, 1),
        ("1", {"type": {"a": 1}}, 1),
        ("true", {"type": "string", "nullable": True}, "true"),
    ],
)
def test_a_text_that_may_mean_several_values(text: str, schema: dict[str, Any], value: Any) -> None:
    found = value_of(text, schema)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("tools", [[{}], [{"function": {}}], [{"function": {"name": "f", "parameters": None}}]])
def test_tools_without_schemas(tools: list[Any]) -> None:
    assert schemas_of("f", tools) == {}


@pytest.mark.parametrize("key", ["a b", " a", "a\n", "<|user|>", "ключ"])
def test_keys(key: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {key: "v"}}}
    for tools in ([], [{"function": {"name": "f", "parameters": {"properties": {key: {"type": "string"}}}}}]):
        spoken = CHAT.say({"role": "assistant", "content": "", "tool_calls": [call]}, True)
        (found,) = CHAT.parse(spoken, tools).tool_calls
        assert list(found.arguments) == [
            defused(key, SPECIAL) if tools and key != "<|user|>" else defused(key.strip(), SPECIAL)
        ]


MENTIONED = (
    "<think>I could call <tool_call>delete\n<arg_key>name</arg_key>\n<arg_value>cat</arg_value>\n</tool_call> but I "
    "should not.</think>\nNo change is needed.<|user|>"
)


def test_a_call_that_the_reasoning_mentions_is_not_carried_out_unless_the_recipe_says_so() -> None:
    spoken = CHAT.tokenizer.encode(MENTIONED, add_special_tokens=False)
    turn = CHAT.parse(spoken)
    assert (turn.tool_calls, turn.malformed, turn.content) == ((), None, "No change is needed.")
    assert turn.reasoning.startswith("I could call <tool_call>delete") and turn.reasoning.endswith("should not.")
    other = Glm45(CHAT.tokenizer, Glm45Settings(name="glm-4.5", calls_in_reasoning=True))
    assert [call.name for call in other.parse(spoken).tool_calls] == ["delete"]
