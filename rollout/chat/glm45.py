"""GLM-4.5's chat, thinking and tool-call format as tokens, over the `renderers` package.

A conversation is opened once and from then on only extended: what the policy sampled is never decoded and encoded
again, and `bridge` refuses anything that is not an exact extension. There is one exception. GLM-4.5 shows a model its
earlier turns without their reasoning as soon as the user speaks again. Then `bridge` forks: it returns a new prompt, in
which the reasoning is cut out of the tokens. Special tokens that a system, user or tool message spells out are defused,
so that they stay text. The agent loop and the supervised stage both use this module and so see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from renderers import GLM45RendererConfig, create_renderer
from renderers.base import ToolCallParseStatus

from rollout.chat.config import RendererSettings
from rollout.chat.text import defused
from rollout.contracts import AssistantTurn, Continuation, ToolCall, ToolSpec
from rollout.types import Message, TokenIds

_BEFORE: list[Message] = [{"role": "user", "content": ""}]
_MALFORMED = {
    ToolCallParseStatus.UNCLOSED_BLOCK: "a tool call is not closed",
    ToolCallParseStatus.MISSING_NAME: "a tool call names no function",
    ToolCallParseStatus.MALFORMED_STRUCTURE: "a tool call's arguments are not <arg_key>…<arg_value>… pairs",
}
"""The parse errors, and how they are reported.

An unknown tool name or an argument of the wrong type is not among them: the environment answers it with an error text.
"""

_TOO_DEEP = "a tool call's argument is nested too deeply"


class Glm45:
    """The format `glm-4.5`; see `rollout.contracts.Chat`."""

    def __init__(self, tokenizer: Any, settings: RendererSettings) -> None:
        """`tokenizer` is a fast Hugging Face tokenizer with GLM-4.5's special tokens.

        Raises ValueError if one of them is missing.
        """
        self.tokenizer = tokenizer
        self._special = tuple(sorted(tokenizer.get_added_vocab(), key=len, reverse=True))
        self._assistant, self._user, self._observation = (
            self._token_id(token) for token in ("<|assistant|>", "<|user|>", "<|observation|>")
        )
        self._think, self._end_think = self._token_id("<think>"), self._token_id("</think>")
        self._token_id("/nothink")
        self._renderers = {
            thinking: create_renderer(tokenizer, GLM45RendererConfig(enable_thinking=thinking))
            for thinking in (True, False)
        }
        # For forks: it extends even where the format would drop reasoning. `_without_reasoning` drops that instead.
        self._keeping = create_renderer(tokenizer, GLM45RendererConfig(enable_thinking=True, thinking_retention="all"))
        self._stop = tuple(self._renderers[True].get_stop_token_ids())
        self._prompts = {
            thinking: list(self._renderers[thinking].render_ids(_BEFORE, add_generation_prompt=True))
            for thinking in (True, False)
        }

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._stop

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        """Return the tokens of the first prompt, which end where the assistant begins to speak."""
        rendered = self._renderers[thinking].render_ids(
            [self._defused(_plain(m, keep_reasoning=thinking)) for m in messages],
            tools=list(tools) or None,
            add_generation_prompt=True,
        )
        return list(rendered)

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> AssistantTurn:
        """Parse one completion. With `tools`, arguments are typed by their schemas; without, by JSON if possible.

        `malformed` is set when a tool call cannot be parsed or the reasoning is never closed. The turn then has no tool
        calls, so that no call is executed that was only half understood.
        """
        renderer = self._renderers[self._think in token_ids or self._end_think in token_ids]
        try:
            parsed = renderer.parse_response(list(token_ids), tools=list(tools) or None)
        except RecursionError:
            return AssistantTurn(content=self.decode(token_ids), malformed=_TOO_DEEP)
        reasoning = (parsed.reasoning_content or "").strip()
        problems = [_MALFORMED[c.status] for c in parsed.tool_calls if c.status in _MALFORMED]
        if parsed.reasoning_complete is False:
            problems.insert(0, "the reasoning is not closed")
        if problems:
            return AssistantTurn(content=parsed.content.strip(), reasoning=reasoning, malformed=problems[0])
        calls = tuple(ToolCall(name=str(c.name), arguments=_arguments(c.arguments)) for c in parsed.tool_calls)
        return AssistantTurn(content=parsed.content.strip(), reasoning=reasoning, tool_calls=calls)

    def bridge(self, token_ids: TokenIds, messages: Sequence[Message], thinking: bool) -> Continuation:
        """Return the tokens that show tool results or a user's message and let the assistant speak next.

        With `thinking`, a user's message forks: all reasoning before it is dropped.

        Raises:
            ValueError: there is nothing to show, or the format cannot extend these tokens exactly, e.g. after
                reasoning that is not closed.
        """
        ids = np.asarray(token_ids)
        speaks = np.flatnonzero(ids == self._assistant)
        if not speaks.size or not messages:
            raise ValueError(
                f"cannot bridge {len(ids)} tokens with {len(messages)} messages: "
                "a bridge follows an assistant turn and shows at least one message"
            )
        forks = thinking and any(message["role"] == "user" for message in messages)
        turn = ids[speaks[-1] :].tolist()
        extension = self._extend(turn, messages, self._keeping if forks else self._renderers[thinking])
        if not forks:
            return Continuation(kind="extension", token_ids=extension)
        return Continuation(kind="fork", token_ids=self._without_reasoning(ids.tolist()) + extension)

    def say(self, message: Message, thinking: bool) -> list[int]:
        """Return the tokens that an assistant samples to say `message`.

        These are its rendering without the generation prompt, and the role marker of the next speaker.
        """
        prompt = self._prompts[thinking]
        whole = list(self._renderers[thinking].render_ids([*_BEFORE, _plain(message, keep_reasoning=thinking)]))
        assert whole[: len(prompt)] == prompt, "the renderer's generation prompt is no prefix of an assistant turn"
        return [*whole[len(prompt) :], self._observation if message.get("tool_calls") else self._user]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included. It is for people to read, never to encode again."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _extend(self, turn: list[int], messages: Sequence[Message], renderer: Any) -> list[int]:
        """Return the tokens to append after a turn, which begins with the assistant's role marker.

        What comes before that marker makes no difference, so a conversation of many turns is not copied each time.
        """
        try:
            bridged = renderer.bridge_to_next_turn(turn[:1], turn[1:], [self._defused(m) for m in messages])
        except RecursionError as error:
            raise ValueError(f"cannot bridge: {_TOO_DEEP}") from error
        if bridged is None or list(bridged.token_ids[: len(turn)]) != turn:
            raise ValueError("the chat format cannot extend these tokens exactly; is the reasoning left unclosed?")
        return list(bridged.token_ids[len(turn) :])

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

    def _defused(self, message: Message) -> Message:
        """Return the message with its special tokens defused.

        An assistant's message is left as it is, because its content may hold reasoning in the format's own tokens.
        """
        if message["role"] == "assistant":
            return message
        return {**message, "content": defused(message["content"], self._special)}

    def _token_id(self, token: str) -> int:
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        if token_id is None or token_id == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {token!r}; GLM-4.5's format needs it as a special token")
        return int(token_id)


def _plain(message: Message, *, keep_reasoning: bool) -> Message:
    if keep_reasoning or "reasoning_content" not in message:
        return message
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def _arguments(arguments: dict[str, Any] | str | None) -> dict[str, Any]:
    return arguments if isinstance(arguments, dict) else {}
