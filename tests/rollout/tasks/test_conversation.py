"""Conversations as people write them: read into one form, or refused by name; nothing is dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rollout.tasks.conversation import read_demonstration, read_messages, read_tools

USER = {"role": "user", "content": "q"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def said(**fields: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", **fields}]


def read(messages: Any) -> list[dict[str, Any]]:
    return read_messages(messages, "m")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "developer", "content": "d"}, {"role": "system", "content": "d"}),
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
        ({"role": "user"}, {"role": "user", "content": ""}),
        ({"role": "user", "content": ["a", {"type": "text", "text": "b"}]}, {"role": "user", "content": "ab"}),
        ({"role": "user", "content": "q", "name": None, "tool_calls": []}, USER),
        *(
            (
                {"role": "assistant", "content": "a", key: value},
                {"role": "assistant", "content": "a", "reasoning_content": "r"},
            )
            for key in ("reasoning_content", "reasoning", "thinking")
            for value in ("r", [{"type": "text", "text": "r"}])
        ),
    ],
)
def test_a_message(message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read([message]) == [expected]


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"name": "f", "arguments": {"x": 1}},
        {"function": {"name": "f", "arguments": '{"x": 1}'}},
        {"type": "function", "id": None, "index": 0, "function": {"name": "f", "arguments": {"x": 1}}},
    ],
)
def test_a_call(call: dict[str, Any]) -> None:
    assert read(said(content=None, tool_calls=[call]))[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_the_old_form_of_calls_and_results() -> None:
    old = said(function_call={"name": "f", "arguments": '{"x": 1}'})
    result = {"role": "function", "name": "f", "content": "1"}
    assert read([*old, result])[1:] == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "1", "name": "f"},
    ]


@pytest.mark.parametrize("arguments", [{"x": None, "b": True}, '{"x": null, "b": true}'])
def test_nulls_in_arguments_stay(arguments: Any) -> None:
    call = read(said(tool_calls=[{"name": "f", "arguments": arguments}]))[1]["tool_calls"][0]
    assert call["function"]["arguments"] == {"x": None, "b": True}


@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
def test_no_arguments(arguments: Any) -> None:
    call = read(said(tool_calls=[{"name": "f", "arguments": arguments}]))[1]["tool_calls"][0]
    assert call["function"]["arguments"] == {}


def test_whole_fields_may_be_json_text() -> None:
    assert read(json.dumps([USER])) == [USER]
    wrapped = {"type": "function", "function": {"name": "f", "parameters": {"default": None}}}
    for tools in ([wrapped], json.dumps([wrapped]), [json.dumps(wrapped)], [wrapped["function"]]):
        assert read_tools(tools, "t") == (wrapped,)
    assert read_tools(None, "t") == read_tools("[]", "t") == ()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "assistant", "weight": 0}, r"m\[1\]\.weight has no meaning in a message of role assistant"),
        ({"role": "assistant", "resoning": "r"}, r"did you mean 'reasoning'"),
        ({"role": "user", "name": "Ann", "content": "x"}, r"m\[1\]\.name has no meaning in a message of role user"),
        ({"role": "user", "reasoning": "r"}, r"m\[1\]\.reasoning has no meaning"),
        ({"role": "assistant", "reasoning": "a", "thinking": "b"}, "reasoning and thinking, which differ"),
        ({"role": "assistant", "thinking": {"a": 1}}, r"m\[1\]\.thinking must be a text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "must be a text or a list of text"),
        ({"role": "user", "content": 3}, r"m\[1\]\.content must be a text"),
        ({"role": "Assistant"}, r"m\[1\]\.role is 'Assistant'; use one of"),
        ({"role": ["user"]}, r"role is \['user'\]"),
        ("hello", r"m\[1\] must be an object"),
        ({"role": "assistant", "tool_calls": ["f(x=1)"]}, r"m\[1\]\.tool_calls\[0\] must be an object"),
        ({"role": "assistant", "tool_calls": [5]}, r"tool_calls\[0\] must be an object"),
        ({"role": "assistant", "tool_calls": "x"}, r"m\[1\]\.tool_calls: not JSON"),
        ({"role": "assistant", "tool_calls": [{"arguments": {}}]}, r"tool_calls\[0\]\.name must be a text"),
        ({"role": "assistant", "tool_calls": [{"name": "", "arguments": {}}]}, r"\.name must be a text"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": "1'}]}, r"\.arguments: not JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}, r"\.arguments must be an object"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "NaN"}]}, r"\.arguments is nan"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "parameters": {"x": 1}}]}, r"parameters has no meaning"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "name": "f"}]}, r"type is 'custom'"),
        ({"role": "assistant", "tool_calls": [CALL], "function_call": {"name": "f"}}, "both tool_calls and"),
    ],
)
def test_what_would_have_to_be_dropped_is_refused(message: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        read([USER, message])
    assert len(str(refused.value)) < 400


def calls(*ids: str | None) -> list[dict[str, Any]]:
    return [{"id": one, "function": {"name": f"f{number}"}} for number, one in enumerate(ids)]


def result(text: str, call_id: str | None = None, name: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": call_id, "name": name}


def test_results_are_put_in_the_order_of_their_calls() -> None:
    messages = [*said(tool_calls=calls("a", "b")), result("of b", "b"), result("of a", "a"), USER]
    assert [message["content"] for message in read(messages)[2:]] == ["of a", "of b", "q"]
    messages = [*said(tool_calls=calls(None, None)), result("1"), result("2")]
    assert [message["content"] for message in read(messages)[2:]] == ["1", "2"]
    messages = [*said(tool_calls=calls("a", "b")), result("1"), result("2", name="f1")]
    assert [message["content"] for message in read(messages)[2:]] == ["1", "2"]


@pytest.mark.parametrize(
    ("ids", "results", "reason"),
    [
        (["a", "b"], [result("1", "a")], r"m\[1\] makes 2 tool calls, and 1 results follow"),
        (["a"], [result("1", "a"), result("2", "b")], "makes 1 tool calls, and 2 results"),
        ([], [result("1")], "makes 0 tool calls, and 1 results"),
        (["a", "b"], [result("1", "a"), result("2", "a")], r"calls \['a', 'b'\], and the results are of \['a', 'a'\]"),
        (["a", "b"], [result("1", "a"), result("2", "c")], r"the results are of \['a', 'c'\]"),
        (["a", "b"], [result("1", "a"), result("2")], r"the results are of \['a', None\]"),
        ([None], [result("1", "a")], r"calls \[None\], and the results are of \['a'\]"),
        (["a"], [result("1", "a", name="g")], "calls 'f0', and the result is of 'g'"),
        (["a", "a"], [result("1", "a"), result("2", "a")], "calls"),
    ],
)
def test_a_result_without_its_call_is_an_error(ids: list[str | None], results: list[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read([*said(tool_calls=calls(*ids)), *results, USER])


def test_the_last_turn_may_call_without_results() -> None:
    assert len(read(said(tool_calls=calls("a", "b")))) == 2


def test_a_demonstration_may_be_a_prompt_and_a_completion() -> None:
    for prompt in ("q", [USER], json.dumps([USER])):
        for completion in ("a", [{"role": "assistant", "content": "a"}]):
            found = read_demonstration({"prompt": prompt, "completion": completion}, "row")
            assert found == [USER, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize("text", ["[1, 2, 3] What is the sum?", "[Problem] What is 2+2?", "[2, 3, 5]", "[]", "[{}]"])
def test_words_that_begin_like_a_list_are_words(text: str) -> None:
    assert read_demonstration({"prompt": text, "completion": text}, "row") == [
        {"role": "user", "content": text},
        {"role": "assistant", "content": text},
    ]


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "f"}, "strict": True},
        {"name": "f", "parameters": {"properties": [1]}},
        {"name": "f", "parameters": 3},
        {"type": "custom", "name": "f"},
        {"function": {"name": ""}},
    ],
)
def test_tools_that_cannot_be_read(tool: Any) -> None:
    with pytest.raises(ValueError, match=r"t\[0\]"):
        read_tools([tool], "t")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER], "functions": [1]}, "field 'functions' is not read: call it 'tools'"),
        ({"messages": [USER], "system": "x"}, "field 'system' is not read"),
        ({"conversations": [USER]}, "field 'conversations' is not read"),
        ({"messages": [USER], "completion": "x"}, "both 'messages' and 'completion'"),
        ({"instruction": "x", "output": "y"}, "it has no 'messages'; its columns are 'instruction', 'output'"),
    ],
)
def test_columns_of_demonstrations(row: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_demonstration(row, "row")
