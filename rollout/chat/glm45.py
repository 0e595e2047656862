"""GLM-4.5's chat, thinking and tool-call format as tokens.

A tool call is `<tool_call>name`, then pairs of <arg_key> and <arg_value>. The role marker of the next speaker ends a
turn: <|observation|> after tool calls, else <|user|>.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from renderers import GLM45RendererConfig, create_renderer

from rollout.chat.arguments import schemas_of, value_of
from rollout.chat.config import Glm45Settings, RendererSettings
from rollout.chat.rendered import Rendered, index
from rollout.contracts import ToolCall, ToolSpec
from rollout.types import Message


class Glm45(Rendered):
    """The format `glm-4.5`; see `rollout.contracts.Chat`."""

    format = "GLM-4.5"
    needs = ("<|assistant|>", "<|user|>", "<|observation|>", "<arg_key>", "<arg_value>", "/nothink")

    def __init__(self, tokenizer: Any, settings: RendererSettings) -> None:
        """`tokenizer` is a fast Hugging Face tokenizer with GLM-4.5's special tokens.

        Raises ValueError if one of them is missing.
        """

        def renderer(thinking: bool, keeping: bool) -> Any:
            retention: Any = {"thinking_retention": "all"} if keeping else {}
            return create_renderer(tokenizer, GLM45RendererConfig(enable_thinking=thinking, **retention))

        super().__init__(tokenizer, renderer, "<|assistant|>")
        self.calls_in_reasoning = isinstance(settings, Glm45Settings) and settings.calls_in_reasoning
        self._user, self._observation = self._token_id("<|user|>"), self._token_id("<|observation|>")
        self._key_begins, self._key_ends = self._token_id("<arg_key>"), self._token_id("</arg_key>")
        self._value_begins, self._value_ends = self._token_id("<arg_value>"), self._token_id("</arg_value>")

    def _call(self, block: list[int], tools: Sequence[ToolSpec]) -> ToolCall:
        """Parse a name, then <arg_key>…<arg_value>… pairs.

        Raises:
            ValueError: there is no name, or a pair is not whole.
        """
        place = index(block, self._key_begins, 0)
        name = self.decode(block[:place]).strip()
        if not name:
            raise ValueError("a tool call names no function")
        schemas = schemas_of(name, tools)
        arguments: dict[str, Any] = {}
        while place < len(block):
            key_ends = index(block, self._key_ends, place)
            value_begins = index(block, self._value_begins, key_ends)
            value_ends = index(block, self._value_ends, value_begins)
            if value_ends == len(block):
                raise ValueError("a tool call's arguments are not <arg_key>…<arg_value>… pairs")
            key = self.decode(block[place + 1 : key_ends])
            key = key if key in schemas else key.strip()
            arguments[key] = value_of(self.decode(block[value_begins + 1 : value_ends]), schemas.get(key, {}))
            place = index(block, self._key_begins, value_ends)
        return ToolCall(name=name, arguments=arguments)

    def _ended(self, spoken: list[int], message: Message) -> list[int]:
        """Append the role marker of the next speaker."""
        return [*spoken, self._observation if message.get("tool_calls") else self._user]

    def _without_reasoning(self, ids: list[int]) -> list[int]:
        """Return the tokens with nothing between <think> and </think>, which is how GLM-4.5 renders earlier turns."""
        kept: list[int] = []
        thinking = False
        for token in ids:
            thinking = thinking and token != self._end_think
            if not thinking:
                kept.append(token)
            thinking = thinking or token == self._think
        return kept
