"""A row's conversation, as people write them, in the one form that Sluice uses; nothing in it is dropped.

Read are, besides OpenAI's form: `developer` for system; `reasoning` and `thinking` for reasoning_content; the old
`function_call` and the role `function`; content as a list of text parts; arguments and whole fields as JSON text; calls
and tools without the wrapper `{"type": "function", "function": …}`. Any other key with a value is refused by name.

Results follow the calls that they answer, one for each. They are put in the order of the calls by their ids, where ids
are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rewards.extension import nearest
from rollout.contracts import ToolSpec
from rollout.tasks.rows import from_text
from rollout.types import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""The roles that a row may use, and what they are to us."""
REASONING = ("reasoning_content", "reasoning", "thinking")
KEYS = {
    "system": ("role", "content"),
    "user": ("role", "content"),
    "assistant": ("role", "content", *REASONING, "tool_calls", "function_call"),
    "tool": ("role", "content", "tool_call_id", "name"),
}
"""The keys that a message of each role may have."""
CALL_KEYS = ("id", "type", "index", "function", "name", "arguments")
"""The keys that a tool call may have, with or without a wrapper."""
UNREAD = {
    "functions": "call it 'tools'",
    "system": "put it into 'messages'",
    "conversations": "call it 'messages', with role and content",
    "chosen": "the supervised stage learns from 'messages'",
    "rejected": "the supervised stage learns from 'messages'",
    "images": "only text can be trained",
}
"""Columns of demonstrations that mean something elsewhere."""
EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values that say as much as a missing key does."""


def read_messages(value: Any, where: str) -> list[Message]:
    """Return the messages of a field, with plain texts as contents and objects as arguments.

    Raises:
        ValueError: they are not messages, or hold what would have to be dropped; the message names the field.
    """
    value = from_text(value, where)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} must be a non-empty list of messages, not {value!r:.100}")
    messages = [_message(message, f"{where}[{number}]") for number, message in enumerate(value)]
    return list(_paired(messages, where))


def read_question(values: Mapping[str, Any], where: str) -> list[Message]:
    """Return what a row asks: `messages`, or else `prompt`, which may also be the words of the user alone.

    Raises:
        ValueError: the row has neither, both, or no messages there.
    """
    prompt = values.get("prompt")
    if values.get("messages") is not None:
        if prompt is not None and prompt != values["messages"]:
            raise ValueError(f"{where}: it has both 'messages' and 'prompt', which differ: keep one of them")
        return read_messages(values["messages"], f"{where}: field 'messages'")
    if prompt is None:
        raise ValueError(f"{where}: it has no 'messages'; its columns are {listed(values)}")
    return _spoken(prompt, "user", f"{where}: field 'prompt'")


def read_demonstration(values: Mapping[str, Any], where: str) -> list[Message]:
    """Return the conversation of a row: `messages`, or else `prompt` and `completion`.

    Raises:
        ValueError: the row has none, or columns beside it that would change what is learnt.
    """
    for name, advice in UNREAD.items():
        if values.get(name) not in EMPTY:
            raise ValueError(f"{where}: field {name!r} is not read: {advice}")
    asked = read_question(values, where)
    completion = values.get("completion")
    if values.get("messages") is not None and completion not in EMPTY:
        raise ValueError(f"{where}: it has both 'messages' and 'completion': keep one of them")
    return asked if completion is None else [*asked, *_spoken(completion, "assistant", f"{where}: field 'completion'")]


def _spoken(value: Any, role: str, where: str) -> list[Message]:
    """Messages, also as JSON text, or else the words of one speaker."""
    if isinstance(value, str) and not _is_messages(value):
        value = [{"role": role, "content": value}]
    return read_messages(value, where)


def _is_messages(text: str) -> bool:
    if not text.lstrip().startswith("["):
        return False
    try:
        found = from_text(text, "")
    except ValueError:
        return False
    return bool(found) and all(isinstance(message, dict) and "role" in message for message in found)


def listed(names: Iterable[str]) -> str:
    """Names for a message, which may be many."""
    text = ", ".join(map(repr, names)) or "none"
    return text if len(text) < 200 else text[:200] + "…"


def read_tools(value: Any, where: str) -> tuple[ToolSpec, ...]:
    """Return the tools of a field in OpenAI's form.

    Raises:
        ValueError: they are no list of functions with names.
    """
    value = from_text(value, where)
    if value in EMPTY:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list of tools, not {value!r:.100}")
    return tuple(_tool(tool, f"{where}[{number}]") for number, tool in enumerate(value))


def _tool(tool: Any, where: str) -> ToolSpec:
    tool = from_text(tool, where)
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"{where} must be {{'type': 'function', 'function': {{'name': …}}}}, not {tool!r:.100}")
    if tool.get("type") not in (None, "function"):
        raise ValueError(f"{where}.type is {tool['type']!r:.100}: only functions can be called")
    parameters = {} if function.get("parameters") is None else function["parameters"]
    if not isinstance(parameters, dict):
        raise ValueError(f"{where}.parameters must be a JSON schema, not {parameters!r:.100}")
    if not isinstance(parameters.get("properties", {}), dict):
        raise ValueError(f"{where}.parameters.properties must be an object, not {parameters['properties']!r:.100}")
    if function is not tool:
        _check_keys(tool, ("type", "function"), where, "a tool beside its function")
    plain_function = {key: value for key, value in function.items() if key != "type"}
    return {"type": "function", "function": plain_function}


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise ValueError(f"{where} must be an object with role and content, not {message!r:.100}")
    said = message.get("role")
    if not isinstance(said, str) or said not in ROLES:
        raise ValueError(f"{where}.role is {said!r:.100}; use one of {', '.join(ROLES)}")
    role = ROLES[said]
    given = {key: value for key, value in message.items() if value not in EMPTY}
    _check_keys(given, KEYS[role], where, f"a message of role {said}")
    read: Message = {"role": role, "content": _text(given.get("content", ""), f"{where}.content")}
    if role == "assistant":
        return read | _reasoning(given, where) | _calls(given, where)
    for key in ("tool_call_id", "name"):
        if key in given:
            read[key] = _name(given[key], f"{where}.{key}")
    return read


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str, what: str) -> None:
    """Raise ValueError for a key that would be dropped."""
    for key, value in given.items():
        if key not in known and value not in EMPTY:
            hint = nearest(key, known)
            raise ValueError(f"{where}.{key:.100} has no meaning in {what}{hint}; leave it out")


def _text(value: Any, where: str) -> str:
    """The text of a content: a string, or a list of strings and text parts."""
    texts = [_part(part) for part in (value if isinstance(value, list) else [value])]
    if None in texts:
        raise ValueError(f"{where} must be a text or a list of text parts, not {value!r:.100}")
    return "".join(filter(None, texts))


def _part(part: Any) -> str | None:
    """The text of a part; None if it is of another kind."""
    if isinstance(part, dict) and part.get("type", "text") == "text":
        part = part.get("text")
    return part if isinstance(part, str) else None


def _reasoning(given: Mapping[str, Any], where: str) -> Message:
    named = [key for key in REASONING if key in given]
    if not named:
        return {}
    if len({repr(given[key]) for key in named}) > 1:
        raise ValueError(f"{where} has {' and '.join(named)}, which differ: keep one of them")
    return {"reasoning_content": _text(given[named[0]], f"{where}.{named[0]}")}


def _calls(given: Mapping[str, Any], where: str) -> Message:
    if "function_call" in given:
        if "tool_calls" in given:
            raise ValueError(f"{where} has both tool_calls and function_call: keep one of them")
        return {"tool_calls": [_call(given["function_call"], f"{where}.function_call")]}
    if "tool_calls" not in given:
        return {}
    calls = from_text(given["tool_calls"], f"{where}.tool_calls")
    if not isinstance(calls, list):
        raise ValueError(f"{where}.tool_calls must be a list, not {calls!r:.100}")
    return {"tool_calls": [_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)]}


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise ValueError(f"{where} must be an object with a name and arguments, not {call!r:.100}")
    for part in (call, function):
        _check_keys(part, CALL_KEYS, where, "a tool call")
    if call.get("type", "function") not in ("function", None):
        raise ValueError(f"{where}.type is {call['type']!r:.100}: only functions can be called")
    arguments = function.get("arguments")
    arguments = {} if arguments in EMPTY else from_text(arguments, f"{where}.arguments")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise ValueError(f"{where}.arguments must be an object, not {arguments!r:.100}")
    read = {
        "type": "function",
        "function": {"name": _name(function.get("name"), f"{where}.name"), "arguments": arguments},
    }
    return read if call.get("id") in EMPTY else {"id": _name(call["id"], f"{where}.id"), **read}


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} must be a text that is not empty, not {value!r:.100}")
    return value


def _paired(messages: Sequence[Message], where: str) -> Iterator[Message]:
    """The messages, each turn's results in the order of its calls."""
    place = 0
    while place < len(messages):
        end = place + 1
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        message, results = messages[place], messages[place + 1 : end]
        if message["role"] == "tool":
            raise ValueError(f"{where}[{place}] is a tool's result, and no call is before it")
        yield message
        yield from _ordered(message.get("tool_calls", []), results, f"{where}[{place}]", end == len(messages))
        place = end


def _ordered(
    calls: Sequence[Mapping[str, Any]], results: Sequence[Message], where: str, last: bool
) -> Sequence[Message]:
    """The results in the order of the calls. Those of the last turn may be missing altogether."""
    if last and not results:
        return []
    if len(calls) != len(results):
        raise ValueError(f"{where} makes {len(calls)} tool calls, and {len(results)} results follow: one for each call")
    asked = [call.get("id") for call in calls]
    answered = [result.get("tool_call_id") for result in results]
    if any(answered):
        by_id = dict(zip(answered, results, strict=True))
        if len(by_id) < len(results) or set(asked) != set(answered):
            raise ValueError(f"{where} makes the calls {asked!r:.100}, and the results are of {answered!r:.100}")
        results = [by_id[call_id] for call_id in asked]
    for call, result in zip(calls, results, strict=True):
        called = call["function"]["name"]
        if result.get("name", called) != called:
            raise ValueError(f"{where} calls {called!r:.100}, and the result is of {result['name']!r:.100}")
    return results
