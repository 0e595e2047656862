"""The audit of a chat format with a model's tokenizer, before a run begins: what would break, in words.

A few conversations are opened, said, parsed and bridged, without a model. A finding is `wrong` if the policy would see
or be trained on wrong tokens, or its calls would be misread; otherwise it only costs time. It takes some milliseconds
beside the loading of the tokenizer. rl.driver.check_chat decides what becomes of the findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards.errors import one_line
from rollout.contracts import AssistantTurn, Chat, Continuation, History, ToolCall, ToolSpec
from rollout.types import Message

_QUOTED = 120
ASKED = 'Où est le “chat” ☃?\nGive it as {"place": [1, true, null]}, please.'
ANSWERED = 'In the “attic” – naïvely: {"place": [1, true, null]} ☃'
REASONED = "The user asks for a place.\n\nI know it: ☃."
SHOWN = '{"found": true, "where": "grenier – ☃", "list": [1, 2.5, null]}'
LOOK: ToolSpec = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a thing up ☃.",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "number_as_text": {"type": "string"},
                "count": {"type": "integer"},
                "share": {"type": "number"},
                "flag": {"type": "boolean"},
                "nothing": {"type": "null"},
                "list": {"type": "array"},
                "deep": {"type": "object"},
            },
            "required": [],
        },
    },
}
ARGUMENTS: dict[str, Any] = {
    "text": 'naïve “☃”\n\t{"quoted": \\ true} it\'s',
    "number_as_text": "007",
    "count": -12,
    "share": 0.5,
    "flag": True,
    "nothing": None,
    "list": [1, "two", False, []],
    "deep": {"a": [{"b": None, "é": 1.5}], "c": {}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that would break: in which conversation, and what came instead. `tools`: only where there are tools."""

    where: str
    what: str
    wrong: bool
    tools: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One that is tried: it opens, the assistant says something, and something is shown."""

    name: str
    says: AssistantTurn
    shows: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()


CONVERSATIONS = (
    Conversation(
        name="an answer and another question",
        says=AssistantTurn(content=ANSWERED),
        shows=({"role": "user", "content": SHOWN},),
    ),
    Conversation(
        name="a tool call with arguments of every type",
        says=AssistantTurn(tool_calls=(ToolCall(name="look_up", arguments=ARGUMENTS),)),
        shows=({"role": "tool", "content": SHOWN},),
        tools=(LOOK,),
    ),
    Conversation(
        name="two tool calls after an announcement",
        says=AssistantTurn(
            content=ANSWERED,
            tool_calls=(ToolCall(name="look_up", arguments={"flag": False}), ToolCall(name="look_up")),
        ),
        shows=({"role": "tool", "content": SHOWN}, {"role": "tool", "content": "error: no"}),
        tools=(LOOK,),
    ),
)


def audit(chat: Chat, thinking: bool) -> list[Finding]:
    """Return what would break in the mode that a run uses. With `thinking`, each conversation is tried with reasoning
    and without."""
    tried = [c for one in CONVERSATIONS for c in ([one, _reasoned(one)] if thinking else [one])]
    return [finding for conversation in tried for finding in _audit(chat, conversation, thinking)]


def _reasoned(conversation: Conversation) -> Conversation:
    says = replace(conversation.says, reasoning=REASONED)
    return replace(conversation, name=f"{conversation.name}, with reasoning", says=says)


def _audit(chat: Chat, tried: Conversation, thinking: bool) -> Iterator[Finding]:
    """What breaks in one conversation. What follows something broken is not looked at."""

    def finding(text: str, wrong: bool = True) -> Finding:
        return Finding(where=tried.name, what=text, wrong=wrong, tools=bool(tried.tools))

    opening: list[Message] = [{"role": "user", "content": ASKED}]
    try:
        prompt = list(chat.open(opening, tried.tools, thinking))
    except Exception as error:  # a user's format may raise anything
        yield finding(f"it cannot be opened: {_told(error)}")
        return
    for part in (ASKED, *(tool["function"]["name"] for tool in tried.tools)):
        if part not in chat.decode(prompt):
            yield finding(f"the prompt lacks {_quoted(part)}: {_quoted(chat.decode(prompt))}")
    try:
        spoken = list(chat.say(_message(tried.says), thinking))
    except Exception as error:
        yield finding(f"an assistant's message, as a supervised stage needs it, fails: {_told(error)}", False)
        return
    yield from (finding(text, wrong) for text, wrong in _misread(chat, tried, spoken))
    history = History(messages=[*opening, {"role": "assistant", "token_ids": tuple(spoken)}], tools=tried.tools)
    try:
        shown = chat.bridge([*prompt, *spoken], tried.shows, thinking, history)
    except Exception as error:
        yield finding(f"it cannot go on after that turn: {_told(error)}")
        return
    yield from (finding(text, wrong) for text, wrong in _misled(chat, tried, prompt, spoken, shown))


def _misread(chat: Chat, tried: Conversation, spoken: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """What is wrong with a turn's tokens, and with what is read from them."""
    stops = set(chat.stop_token_ids)
    if not spoken or spoken[-1] not in stops or stops & set(spoken[:-1]):
        yield f"no stop token ends the turn, or one stands within it: {_quoted(chat.decode(spoken))}", True
    turn = chat.parse(spoken, tried.tools)
    if turn.malformed is not None:
        yield f"the turn is read as malformed ({turn.malformed})", True
        return
    if turn.content.strip() != tried.says.content:
        yield f"the text {_quoted(tried.says.content)} comes back as {_quoted(turn.content)}", True
    yield from ((text, True) for text in _other_calls(tried.says.tool_calls, turn.tool_calls))
    if turn.reasoning.strip() != tried.says.reasoning:
        yield f"reasoning comes back as {_quoted(turn.reasoning)}", bool(turn.reasoning)


def _other_calls(said: Sequence[ToolCall], read: Sequence[ToolCall]) -> Iterator[str]:
    names = [call.name for call in read]
    if names != [call.name for call in said]:
        yield f"calls of {', '.join(call.name for call in said)} come back as {', '.join(names) or 'none'}"
        return
    for one, other in zip(said, read, strict=True):
        for key in sorted(one.arguments.keys() | other.arguments.keys()):
            values = [repr(call.arguments.get(key, "nothing at all")) for call in (one, other)]
            if values[0] != values[1]:  # as texts, because True == 1
                yield f"the argument {key!r} comes back as {_quoted(values[1])} instead of {_quoted(values[0])}"


def _misled(
    chat: Chat, tried: Conversation, prompt: Sequence[int], spoken: Sequence[int], shown: Continuation
) -> Iterator[tuple[str, bool]]:
    """What is wrong with the tokens that go on after a turn."""
    text = chat.decode(shown.token_ids)
    missing = [message["content"] for message in tried.shows if message["content"] not in text]
    if missing:
        yield f"the next prompt lacks what is shown, {_quoted(missing[0])}: {_quoted(text)}", True
    if shown.token_ids[-1:] != list(prompt[-1:]):
        yield f"the assistant does not get to speak at the end of {_quoted(text[-_QUOTED:])}", True
    if shown.broken:
        roles = "a tool's result" if tried.shows[0]["role"] == "tool" else "a message of the user"
        yield f"{roles} begins a new sample, because the new rendering does not begin with the tokens so far", False


def _message(turn: AssistantTurn) -> Message:
    message: Message = {"role": "assistant", "content": turn.content}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        functions = [{"name": call.name, "arguments": call.arguments} for call in turn.tool_calls]
        message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return message


def _told(error: Exception) -> str:
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return one_line(text, 2 * _QUOTED)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")
