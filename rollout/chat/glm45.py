"""GLM-4.5's chat, thinking and tool-call format as tokens, over the `renderers` package.

The one place where text becomes tokens or tokens become text. A conversation is opened once and from then on only
extended: what the policy sampled is never decoded and encoded again (invariant 1), and `bridge` refuses anything that
is not an exact extension. What a system, user or tool message says is text: a special token spelled out in it is
defused, so that no row of a dataset and no tool can forge a role marker. Called by the agent loop and by the supervised
stage, which must see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from renderers import GLM45RendererConfig, create_renderer
from renderers.base import ToolCallParseStatus
from transformers import AutoTokenizer

from rollout.contracts import AssistantTurn, ToolCall, ToolSpec
from rollout.types import Message

RENDERERS = ("glm-4.5",)
_ASSISTANT, _USER, _OBSERVATION, _NOTHINK = "<|assistant|>", "<|user|>", "<|observation|>", "/nothink"
_BEFORE: list[Message] = [{"role": "user", "content": ""}]
_MALFORMED = {
    ToolCallParseStatus.UNCLOSED_BLOCK: "a tool call is not closed",
    ToolCallParseStatus.MISSING_NAME: "a tool call names no function",
    ToolCallParseStatus.MALFORMED_STRUCTURE: "a tool call's arguments are not <arg_key>…<arg_value>… pairs",
}
"""An unknown tool name or an argument of the wrong type parses: the environment answers those with an error text."""

_TOO_DEEP = "a tool call's argument is nested too deeply"


class Chat:
    """Renders, parses and extends conversations. Stateless between calls: one serves any number of agent loops."""

    def __init__(self, tokenizer: Any, renderer: str = "glm-4.5") -> None:
        """`tokenizer` is a fast Hugging Face tokenizer with GLM-4.5's special tokens.

        Raises ValueError for an unknown renderer or a tokenizer that lacks one of the format's tokens.
        """
        if renderer not in RENDERERS:
            raise ValueError(f"unknown renderer {renderer!r}; use one of {', '.join(RENDERERS)}")
        self.tokenizer = tokenizer
        self._special = tuple(sorted(tokenizer.get_added_vocab(), key=len, reverse=True))
        self._assistant, self._user, self._observation, self._nothink = (
            self._token_id(t) for t in (_ASSISTANT, _USER, _OBSERVATION, _NOTHINK)
        )
        self._think = frozenset({self._token_id("<think>"), self._token_id("</think>")})
        self._renderers = {
            thinking: create_renderer(tokenizer, GLM45RendererConfig(enable_thinking=thinking))
            for thinking in (True, False)
        }
        self._stop = tuple(self._renderers[True].get_stop_token_ids())
        self._prompts = {
            thinking: list(self._renderers[thinking].render_ids(_BEFORE, add_generation_prompt=True))
            for thinking in (True, False)
        }

    @classmethod
    def load(cls, model: str | Path, renderer: str = "glm-4.5") -> Chat:
        """The chat format over the tokenizer of a model directory or Hugging Face name."""
        return cls(AutoTokenizer.from_pretrained(str(model)), renderer)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._stop

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        """The first prompt, ending where the assistant begins to speak."""
        rendered = self._renderers[thinking].render_ids(
            [self._defused(_plain(m, keep_reasoning=thinking)) for m in messages],
            tools=list(tools) or None,
            add_generation_prompt=True,
        )
        return list(rendered)

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> AssistantTurn:
        """What one completion says. With `tools`, arguments are typed by their schemas; without, by JSON if possible.

        `malformed` is set when a tool call cannot be parsed or the reasoning is never closed; the turn then has no
        tool calls, so that nothing half-read is executed.
        """
        renderer = self._renderers[not self._think.isdisjoint(token_ids)]
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

    def bridge(self, token_ids: Sequence[int], tool_results: Sequence[str]) -> list[int]:
        """The tokens to append after `token_ids` (prompt and all that was sampled) so that the tool results are shown
        and the assistant speaks next. The extension only.

        Raises ValueError when the format cannot extend these tokens exactly, e.g. after unclosed reasoning.
        """
        ids = list(token_ids)
        if self._assistant not in ids or not tool_results:
            raise ValueError(
                f"cannot bridge {len(ids)} tokens with {len(tool_results)} tool results: "
                "a bridge follows an assistant turn and shows at least one result"
            )
        renderer = self._renderers[self._is_thinking(ids)]
        split = len(ids) - ids[::-1].index(self._assistant)
        results = [{"role": "tool", "content": self._defuse(text)} for text in tool_results]
        try:
            bridged = renderer.bridge_to_next_turn(ids[:split], ids[split:], results)
        except RecursionError as error:
            raise ValueError(f"cannot bridge: {_TOO_DEEP}") from error
        if bridged is None or list(bridged.token_ids[: len(ids)]) != ids:
            raise ValueError("the chat format cannot extend these tokens exactly; is the reasoning left unclosed?")
        return list(bridged.token_ids[len(ids) :])

    def render_demonstration(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool
    ) -> tuple[list[int], list[int]]:
        """Token ids and loss mask (1 where the assistant speaks) of a conversation; both of length L.

        The tokens are those an agent loop would see for the same turns: opened, sampled, bridged. Only the turns after
        the last user message are trained; those before are history, with their reasoning stripped by the format.
        Raises ValueError where the conversation does not alternate as an agent loop does.
        """
        first = 1 + max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        if first == 0 or first == len(messages):
            raise ValueError("a demonstration needs a user message and an assistant message after it")
        ids = self.open(messages[:first], tools, thinking)
        mask = [0] * len(ids)
        position = first
        while position < len(messages):
            results = _results_after(messages, position)
            spoken = self._spoken(messages[position], thinking)
            spoken.append(self._observation if results else self._user)
            ids, mask = ids + spoken, mask + [1] * len(spoken)
            position += 1 + len(results)
            if results:
                shown = self.bridge(ids, results)
                ids, mask = ids + shown, mask + [0] * len(shown)
        if not mask[-1]:
            raise ValueError("a demonstration ends with an assistant message, not with a tool result")
        return ids, mask

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included; for people to read, never to encode again."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _spoken(self, message: Message, thinking: bool) -> list[int]:
        """What an assistant samples to say `message`: its rendering without the generation prompt, not yet closed."""
        prompt = self._prompts[thinking]
        whole = list(self._renderers[thinking].render_ids([*_BEFORE, _plain(message, keep_reasoning=thinking)]))
        assert whole[: len(prompt)] == prompt, "the renderer's generation prompt is no prefix of an assistant turn"
        return whole[len(prompt) :]

    def _is_thinking(self, ids: list[int]) -> bool:
        """The mode `open` chose: without thinking, its prompt's user message ends with the /nothink token."""
        return ids[ids.index(self._assistant) - 1] != self._nothink

    def _defused(self, message: Message) -> Message:
        """An assistant's message stays: its reasoning may stand in its content, in the format's own tokens."""
        return message if message["role"] == "assistant" else {**message, "content": self._defuse(message["content"])}

    def _defuse(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text.encode(errors="replace").decode()  # a lone surrogate, which no tokenizer takes, becomes "?"

    def _token_id(self, token: str) -> int:
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        if token_id is None or token_id == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {token!r}; GLM-4.5's format needs it as a special token")
        return int(token_id)


def _plain(message: Message, *, keep_reasoning: bool) -> Message:
    if keep_reasoning or "reasoning_content" not in message:
        return message
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def _results_after(messages: Sequence[Message], position: int) -> list[str]:
    """The tool results that directly follow the assistant message at `position`."""
    if messages[position]["role"] != "assistant":
        raise ValueError(f"message {position} has role {messages[position]['role']!r} where the assistant should speak")
    end = position + 1
    while end < len(messages) and messages[end]["role"] == "tool":
        end += 1
    if bool(messages[position].get("tool_calls")) != (end > position + 1):
        raise ValueError(f"message {position}: a turn has tool results after it exactly when it calls tools")
    return [str(m["content"]) for m in messages[position + 1 : end]]


def _arguments(arguments: dict[str, Any] | str | None) -> dict[str, Any]:
    return arguments if isinstance(arguments, dict) else {}
