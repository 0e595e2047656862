"""GLM-4.5's chat, thinking and tool-call format as tokens, over the `renderers` package.

A conversation is opened once and from then on only extended: what the policy sampled is never decoded and encoded
again, and `bridge` refuses anything that is not an exact extension. There is one exception. GLM-4.5 shows a model its
earlier turns without their reasoning as soon as the user speaks again. Then `bridge` forks: it returns a new prompt, in
which the reasoning is cut out of the tokens. Special tokens that any text spells out, of a message, a tool call or a
tool's description, are defused, so that they stay text. The agent loop and the supervised stage both use this module
and so see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from renderers import GLM45RendererConfig, create_renderer

from rollout.chat.arguments import schemas_of, value_of
from rollout.chat.config import Glm45Settings, RendererSettings
from rollout.chat.text import defused
from rollout.contracts import AssistantTurn, Continuation, ToolCall, ToolSpec
from rollout.types import Message, TokenIds

_BEFORE: list[Message] = [{"role": "user", "content": ""}]
_TOO_DEEP = "a tool call's argument is nested too deeply"


class Glm45:
    """The format `glm-4.5`; see `rollout.contracts.Chat`."""

    def __init__(self, tokenizer: Any, settings: RendererSettings) -> None:
        """`tokenizer` is a fast Hugging Face tokenizer with GLM-4.5's special tokens.

        Raises ValueError if one of them is missing.
        """
        self.tokenizer = tokenizer
        self._calls_in_reasoning = isinstance(settings, Glm45Settings) and settings.calls_in_reasoning
        self._special = tuple(sorted(tokenizer.get_added_vocab(), key=len, reverse=True))
        self._assistant, self._user, self._observation = (
            self._token_id(token) for token in ("<|assistant|>", "<|user|>", "<|observation|>")
        )
        self._think, self._end_think = self._token_id("<think>"), self._token_id("</think>")
        self._call_begins, self._call_ends = self._token_id("<tool_call>"), self._token_id("</tool_call>")
        self._key_begins, self._key_ends = self._token_id("<arg_key>"), self._token_id("</arg_key>")
        self._value_begins, self._value_ends = self._token_id("<arg_value>"), self._token_id("</arg_value>")
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
            [self._defused(m, keep_reasoning=thinking) for m in messages],
            tools=self._defused_all(tools) or None,
            add_generation_prompt=True,
        )
        return list(rendered)

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> AssistantTurn:
        """Parse one completion. With `tools`, arguments are typed by their schemas; without, by JSON if possible.

        `malformed` is set when a tool call cannot be parsed or the reasoning is never closed. The turn then has no tool
        calls, so that no call is executed that was only half understood.
        """
        spoken = self._scan(token_ids)
        content, reasoning = (self.decode(part).strip() for part in (spoken.content, spoken.reasoning))
        if spoken.problem:
            return AssistantTurn(content=content, reasoning=reasoning, malformed=spoken.problem)
        try:
            calls = tuple(self._call(block, tools) for block in spoken.calls)
        except ValueError as error:
            return AssistantTurn(content=content, reasoning=reasoning, malformed=str(error))
        except RecursionError:
            return AssistantTurn(content=self.decode(token_ids), malformed=_TOO_DEEP)
        return AssistantTurn(content=content, reasoning=reasoning, tool_calls=calls)

    def _scan(self, token_ids: Sequence[int]) -> _Spoken:
        """Tell reasoning, content and tool calls of a completion apart, up to its first stop token.

        What stands in the reasoning is reasoning, a tool call too, unless the settings say otherwise. A model may leave
        out the <think> with which it begins.
        """
        ids = list(token_ids)
        ids = ids[: next((place for place, token in enumerate(ids) if token in self._stop), len(ids))]
        spoken = _Spoken()
        place, thinking = 0, self._think in ids or self._end_think in ids
        while place < len(ids):
            token = ids[place]
            if token == self._call_begins and (not thinking or self._calls_in_reasoning):
                end = _index(ids, self._call_ends, place)
                spoken.calls.append(ids[place + 1 : end])
                if end == len(ids):
                    spoken.problem = "a tool call is not closed"
                place, thinking = end, False
            elif token in (self._think, self._end_think):
                thinking = token == self._think
            else:
                (spoken.reasoning if thinking else spoken.content).append(token)
            place += 1
        if thinking:
            spoken.problem = "the reasoning is not closed"
        return spoken

    def _call(self, block: list[int], tools: Sequence[ToolSpec]) -> ToolCall:
        """Parse what stands between <tool_call> and </tool_call>: a name, then <arg_key>…<arg_value>… pairs.

        Raises:
            ValueError: there is no name, or a pair is not whole.
        """
        place = _index(block, self._key_begins, 0)
        name = self.decode(block[:place]).strip()
        if not name:
            raise ValueError("a tool call names no function")
        schemas = schemas_of(name, tools)
        arguments: dict[str, Any] = {}
        while place < len(block):
            key_ends = _index(block, self._key_ends, place)
            value_begins = _index(block, self._value_begins, key_ends)
            value_ends = _index(block, self._value_ends, value_begins)
            if value_ends == len(block):
                raise ValueError("a tool call's arguments are not <arg_key>…<arg_value>… pairs")
            key = self.decode(block[place + 1 : key_ends])
            key = key if key in schemas else key.strip()
            arguments[key] = value_of(self.decode(block[value_begins + 1 : value_ends]), schemas.get(key, {}))
            place = _index(block, self._key_begins, value_ends)
        return ToolCall(name=name, arguments=arguments)

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
        spoken = self._defused(message, keep_reasoning=thinking)
        whole = list(self._renderers[thinking].render_ids([*_BEFORE, spoken]))
        assert whole[: len(prompt)] == prompt, "the renderer's generation prompt is no prefix of an assistant turn"
        return [*whole[len(prompt) :], self._observation if message.get("tool_calls") else self._user]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included. It is for people to read, never to encode again."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _extend(self, turn: list[int], messages: Sequence[Message], renderer: Any) -> list[int]:
        """Return the tokens to append after a turn, which begins with the assistant's role marker.

        What comes before that marker makes no difference, so a conversation of many turns is not copied each time.
        """
        shown = [self._defused(message, keep_reasoning=True) for message in messages]
        try:
            bridged = renderer.bridge_to_next_turn(turn[:1], turn[1:], shown)
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

    def _defused(self, message: Message, *, keep_reasoning: bool) -> Message:
        """The message with its special tokens defused, in all that is text. Reasoning that an assistant's content holds
        in the format's own tokens is told apart first."""
        if message["role"] != "assistant":
            return {**message, "content": defused(message["content"], self._special)}
        message = _told_apart(message)
        kept = {key: value for key, value in message.items() if keep_reasoning or key != "reasoning_content"}
        return {key: value if key == "role" else self._defused_all(value) for key, value in kept.items()}

    def _defused_all(self, value: Any) -> Any:
        """A plain value with the special tokens of all its texts defused."""
        if isinstance(value, str):
            return defused(value, self._special)
        if isinstance(value, dict):
            return {self._defused_all(key): self._defused_all(item) for key, item in value.items()}
        return [self._defused_all(item) for item in value] if isinstance(value, list | tuple) else value

    def _token_id(self, token: str) -> int:
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        if token_id is None or token_id == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {token!r}; GLM-4.5's format needs it as a special token")
        return int(token_id)


@dataclass(slots=True)
class _Spoken:
    """The tokens of a completion by what they are, and what is wrong with them. A call is without its two markers."""

    content: list[int] = field(default_factory=list)
    reasoning: list[int] = field(default_factory=list)
    calls: list[list[int]] = field(default_factory=list)
    problem: str | None = None


def _index(ids: list[int], token: int, start: int) -> int:
    """Where the token stands first, from `start` on; the length if nowhere."""
    try:
        return ids.index(token, start)
    except ValueError:
        return len(ids)


def _told_apart(message: Message) -> Message:
    """An assistant's message whose content holds `</think>`, with what stands before that as its reasoning, as in
    GLM-4.5's own template. The <think> that begins it may be left out."""
    before, end, content = message.get("content", "").partition("</think>")
    if not end or message.get("reasoning_content"):
        return message
    _, opened, inside = before.partition("<think>")
    return {**message, "content": content.strip(), "reasoning_content": inside if opened else before}
