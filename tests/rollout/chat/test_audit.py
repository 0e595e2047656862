"""The audit finds what a format gets wrong, says it in words, and finds nothing in formats that are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rollout.chat.audit import Finding, audit
from rollout.chat.chatml import Chatml
from rollout.chat.config import RendererSettings
from rollout.contracts import AssistantTurn, Continuation, ToolCall
from tests.rollout.chat.chat_support import CHATML_TOKENS, QWEN_TEMPLATE, SMOLLM_TEMPLATE, chat, tokenizer
from tests.support import glm45


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", ["glm-4.5", "chatml", "qwen3"])
def test_nothing_is_found_in_our_own_formats(name: str, thinking: bool) -> None:
    assert audit(glm45() if name == "glm-4.5" else chat(name), thinking) == []


@pytest.mark.parametrize("thinking", [True, False])
def test_a_template_that_drops_reasoning_only_costs_forks(thinking: bool) -> None:
    found = audit(chat("template", QWEN_TEMPLATE), thinking)
    assert found and not any(finding.wrong for finding in found)
    assert {finding.what for finding in found} == {
        f"{shown} begins a new sample, because the new rendering does not begin with the tokens so far"
        for shown in ("a tool's result", "a message of the user")
    }


def test_a_template_without_tools_is_wrong_only_where_there_are_tools() -> None:
    found = audit(chat("template", SMOLLM_TEMPLATE), False)
    assert found and all(finding.wrong and finding.tools for finding in found)
    assert any("calls of look_up come back as none" in finding.what for finding in found)
    assert any("the prompt lacks 'look_up'" in finding.what for finding in found)


class Faulty(Chatml):
    """ChatML with one fault, that a test names."""

    def __init__(self, fault: str) -> None:
        super().__init__(tokenizer(CHATML_TOKENS), RendererSettings(name="chatml"))
        self._fault = fault

    def open(self, messages: Any, tools: Any, thinking: bool) -> list[int]:
        if self._fault == "open raises":
            raise KeyError("nobody")
        if self._fault == "ascii":
            messages = [{**m, "content": m["content"].encode("ascii", "replace").decode()} for m in messages]
        return super().open(messages, tools, thinking)

    def say(self, message: Any, thinking: bool) -> list[int]:
        if self._fault == "say raises":
            raise ValueError("no")
        return super().say(message, thinking)[: -1 if self._fault == "no stop" else None]

    def parse(self, token_ids: Sequence[int], tools: Any = ()) -> AssistantTurn:
        turn = super().parse(token_ids, tools)
        if self._fault == "text" and turn.tool_calls:
            calls = [
                ToolCall(name=c.name, arguments={k: str(v) for k, v in c.arguments.items()}) for c in turn.tool_calls
            ]
            return replace(turn, tool_calls=tuple(calls))
        if self._fault == "one call":
            return replace(turn, tool_calls=turn.tool_calls[:1])
        if self._fault == "true is one" and turn.tool_calls and "flag" in turn.tool_calls[0].arguments:
            call = turn.tool_calls[0]
            changed = ToolCall(name=call.name, arguments=call.arguments | {"flag": int(call.arguments["flag"])})
            return replace(turn, tool_calls=(changed, *turn.tool_calls[1:]))
        if self._fault == "malformed":
            return AssistantTurn(malformed="I do not like it")
        if self._fault == "shouts":
            return replace(turn, content=turn.content.upper())
        return turn

    def bridge(self, token_ids: Any, messages: Any, thinking: bool, *history: Any) -> Continuation:
        if self._fault == "bridge raises":
            raise TypeError("what history?")
        shown = super().bridge(token_ids, messages[: 1 if self._fault == "one result" else None], thinking)
        return replace(shown, token_ids=shown.token_ids[: -1 if self._fault == "silent" else None])


@pytest.mark.parametrize(
    ("fault", "words", "wrong"),
    [
        ("open raises", "it cannot be opened: KeyError: 'nobody'", True),
        ("ascii", "the prompt lacks 'Où est le", True),
        ("say raises", "an assistant's message, as a supervised stage needs it, fails: no", False),
        ("no stop", "no stop token ends the turn", True),
        ("text", "the argument 'count' comes back as \"'-12'\" instead of '-12'", True),
        ("true is one", "the argument 'flag' comes back as '1' instead of 'True'", True),
        ("one call", "calls of look_up, look_up come back as look_up", True),
        ("malformed", "the turn is read as malformed (I do not like it)", True),
        ("shouts", "comes back as 'IN THE “ATTIC”", True),
        ("bridge raises", "it cannot go on after that turn: TypeError: what history?", True),
        ("one result", "the next prompt lacks what is shown, 'error: no'", True),
        ("silent", "the assistant does not get to speak at the end of", True),
    ],
)
@pytest.mark.parametrize("thinking", [True, False])
def test_every_fault_is_found_and_named(fault: str, words: str, wrong: bool, thinking: bool) -> None:
    found = audit(Faulty(fault), thinking)
    assert any(words in finding.what and finding.wrong == wrong for finding in found), found
    assert audit(Faulty("none"), thinking) == []


def test_a_finding_names_the_conversation() -> None:
    first = audit(Faulty("open raises"), True)[0]
    assert first == Finding(
        where="an answer and another question", what="it cannot be opened: KeyError: 'nobody'", wrong=True, tools=False
    )
