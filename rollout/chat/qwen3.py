"""Qwen3's chat, thinking and tool-call format as tokens.

A turn stands between `<|im_start|>assistant` and <|im_end|>. A tool call is JSON between two tokens, and tool results
are shown in the user's name. Once the user speaks again, earlier turns lose their reasoning, its two tokens and the
empty lines after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from renderers import Qwen3RendererConfig, create_renderer

from rollout.chat.config import RendererSettings
from rollout.chat.json_calls import read_call
from rollout.chat.rendered import Rendered, index
from rollout.contracts import ToolCall, ToolSpec
from rollout.types import Message


class Qwen3(Rendered):
    """The format `qwen3`; see `rollout.contracts.Chat`."""

    format = "Qwen3"
    needs = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_response>", "</tool_response>")

    def __init__(self, tokenizer: Any, settings: RendererSettings) -> None:
        """`tokenizer` is a fast Hugging Face tokenizer with Qwen3's special tokens.

        Raises ValueError if one of them is missing.
        """

        def renderer(thinking: bool, keeping: bool) -> Any:
            retention: Any = {"thinking_retention": "all"} if keeping else {}
            return create_renderer(tokenizer, Qwen3RendererConfig(enable_thinking=thinking, **retention))

        super().__init__(tokenizer, renderer, "<|im_start|>")
        self._turn_ends = self._token_id("<|im_end|>")

    def _call(self, block: list[int], tools: Sequence[ToolSpec]) -> ToolCall:
        return read_call(self.decode(block))

    def _ended(self, spoken: list[int], message: Message) -> list[int]:
        """Cut off what the template writes after the token that ends the turn."""
        return spoken[: spoken.index(self._turn_ends) + 1]

    def _without_reasoning(self, ids: list[int]) -> list[int]:
        kept: list[int] = []
        place = 0
        while place < len(ids):
            if ids[place] != self._think:
                kept.append(ids[place])
                place += 1
                continue
            place = index(ids, self._end_think, place) + 1
            while place < len(ids) and not self.decode(ids[place : place + 1]).strip("\n"):
                place += 1
        return kept
