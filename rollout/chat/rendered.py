"""What the chat formats over the `renderers` package have in common.

A conversation is opened once and from then on only extended: what the policy sampled is never decoded and encoded
again, and `bridge` refuses anything that is not an exact extension. There is one exception. These formats show a model
its earlier turns without their reasoning as soon as the user speaks again. Then `bridge` forks: it returns a new
prompt, in which the reasoning is cut out of the tokens. Special tokens that any text spells out, of a message, a tool
call or a tool's description, are defused, so that they stay text. The agent loop and the supervised stage both use
these formats and so see the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rollout.chat.messages import defused_all, defused_message, special_tokens
from rollout.contracts import NOTHING_SAID, AssistantTurn, Continuation, History, ToolCall, ToolSpec
from rollout.types import Message, TokenIds

_BEFORE: list[Message] = [{"role": "user", "content": ""}]
_TOO_DEEP = "a tool call's argument is nested too deeply"
Renderers = Callable[[bool, bool], Any]
"""From (thinking, keep reasoning across a user's message) to a renderer."""


class Rendered:
    """The base of `Glm45` and `Qwen3`; see `rollout.contracts.Chat`. They say how a turn begins and ends."""

    format = ""
    """The name of the format in error messages."""
    needs: tuple[str, ...] = ()
    """The special tokens that a tokenizer must have, beside those of reasoning and calls."""
    calls_in_reasoning = False
    """Whether a tool call that stands in the reasoning is carried out."""

    def __init__(self, tokenizer: Any, renderers: Renderers, turn_begins: str) -> None:
        """`turn_begins` is the token with which the assistant's turn begins.

        Raises ValueError if the tokenizer lacks a special token.
        """
        self.tokenizer = tokenizer
        for token in self.needs:
            self._token_id(token)
        self._special = special_tokens(tokenizer)
        self._turn_begins = self._token_id(turn_begins)
        self._think, self._end_think = self._token_id("<think>"), self._token_id("</think>")
        self._call_begins, self._call_ends = self._token_id("<tool_call>"), self._token_id("</tool_call>")
        self._renderers = {thinking: renderers(thinking, False) for thinking in (True, False)}
        # For forks: it extends even where the format would drop reasoning. `_without_reasoning` drops that instead.
        self._keeping = renderers(True, True)
        self._stop = tuple(self._renderers[True].get_stop_token_ids())
        self._prompts = {
            thinking: list(self._renderers[thinking].render_ids(_BEFORE, add_generation_prompt=True))
            for thinking in (True, False)
        }
        self._openings = {thinking: _from_last(prompt, self._turn_begins) for thinking, prompt in self._prompts.items()}

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._stop

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        """Return the tokens of the first prompt, which end where the assistant begins to speak."""
        rendered = self._renderers[thinking].render_ids(
            [self._defused(m, keep_reasoning=thinking) for m in messages],
            tools=defused_all(tools, self._special) or None,
            add_generation_prompt=True,
        )
        return list(rendered)

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> AssistantTurn:
        """Parse one completion. With `tools`, arguments are typed by their schemas where the format leaves them open.

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

    def bridge(
        self, token_ids: TokenIds, messages: Sequence[Message], thinking: bool, history: History = NOTHING_SAID
    ) -> Continuation:
        """Return the tokens that show tool results or a user's message and let the assistant speak next.

        With `thinking`, a user's message forks: all reasoning before it is dropped. The tokens tell everything, so
        `history` is not looked at.

        Raises:
            ValueError: there is nothing to show, or the format cannot extend these tokens exactly, e.g. after
                reasoning that is not closed.
        """
        ids = np.asarray(token_ids)
        speaks = np.flatnonzero(ids == self._turn_begins)
        if not speaks.size or not messages:
            raise ValueError(
                f"cannot bridge {len(ids)} tokens with {len(messages)} messages: "
                "a bridge follows an assistant turn and shows at least one message"
            )
        forks = thinking and any(message["role"] == "user" for message in messages)
        turn = ids[speaks[-1] :].tolist()
        opening = self._openings[thinking]
        spoken_from = len(opening) if turn[: len(opening)] == opening else 1
        renderer = self._keeping if forks else self._renderers[thinking]
        extension = self._extend(turn, spoken_from, messages, renderer)
        if not forks:
            return Continuation(kind="extension", token_ids=extension)
        return Continuation(kind="fork", token_ids=self._without_reasoning(ids.tolist()) + extension)

    def say(self, message: Message, thinking: bool) -> list[int]:
        """Return the tokens that an assistant samples to say `message`.

        These are its rendering without the generation prompt, up to the token that ends its turn.

        Raises:
            ValueError: the tokenizer is not one of the format's own models, and joins the prompt with what follows.
        """
        prompt = self._prompts[thinking]
        spoken = self._defused(message, keep_reasoning=thinking)
        whole = list(self._renderers[thinking].render_ids([*_BEFORE, spoken]))
        if whole[: len(prompt)] != prompt:
            raise ValueError(
                f"the tokenizer joins the end of {self.format}'s generation prompt with what the assistant says; is it "
                "the tokenizer of such a model?"
            )
        return self._ended(whole[len(prompt) :], message)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included. It is for people to read, never to encode again."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _call(self, block: list[int], tools: Sequence[ToolSpec]) -> ToolCall:
        """Parse what stands between <tool_call> and </tool_call>. Raises ValueError where it is no call."""
        raise NotImplementedError

    def _ended(self, spoken: list[int], message: Message) -> list[int]:
        """Make the rendering of an assistant's message end with the token that the assistant samples last."""
        raise NotImplementedError

    def _without_reasoning(self, ids: list[int]) -> list[int]:
        """Return the tokens as the format shows them once the user speaks again."""
        raise NotImplementedError

    def _scan(self, token_ids: Sequence[int]) -> Spoken:
        """Tell reasoning, content and tool calls of a completion apart, up to its first stop token.

        What stands in the reasoning is reasoning, a tool call too, unless the settings say otherwise. A model may leave
        out the <think> with which it begins.
        """
        ids = list(token_ids)
        ids = ids[: next((place for place, token in enumerate(ids) if token in self._stop), len(ids))]
        spoken = Spoken()
        place, thinking = 0, self._think in ids or self._end_think in ids
        while place < len(ids):
            token = ids[place]
            if token == self._call_begins and (not thinking or self.calls_in_reasoning):
                end = index(ids, self._call_ends, place)
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

    def _extend(self, turn: list[int], spoken_from: int, messages: Sequence[Message], renderer: Any) -> list[int]:
        """Return the tokens to append after a turn, which begins with the token that marks it and is the assistant's
        own from `spoken_from` on.

        What comes before that token makes no difference, so a conversation of many turns is not copied each time.
        """
        shown = [self._defused(message, keep_reasoning=True) for message in messages]
        try:
            bridged = renderer.bridge_to_next_turn(turn[:spoken_from], turn[spoken_from:], shown)
        except RecursionError as error:
            raise ValueError(f"cannot bridge: {_TOO_DEEP}") from error
        if bridged is None or list(bridged.token_ids[: len(turn)]) != turn:
            raise ValueError("the chat format cannot extend these tokens exactly; is the reasoning left unclosed?")
        return list(bridged.token_ids[len(turn) :])

    def _defused(self, message: Message, *, keep_reasoning: bool) -> Message:
        return defused_message(message, self._special, keep_reasoning=keep_reasoning)

    def _token_id(self, token: str) -> int:
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        if token_id is None or token_id == self.tokenizer.unk_token_id:
            raise ValueError(
                f"the tokenizer has no token {token!r}; {self.format}'s format needs it as a special token"
            )
        return int(token_id)


@dataclass(slots=True)
class Spoken:
    """The tokens of a completion by what they are, and what is wrong with them. A call is without its two markers."""

    content: list[int] = field(default_factory=list)
    reasoning: list[int] = field(default_factory=list)
    calls: list[list[int]] = field(default_factory=list)
    problem: str | None = None


def index(ids: list[int], token: int, start: int) -> int:
    """Where the token stands first, from `start` on; the length if nowhere."""
    try:
        return ids.index(token, start)
    except ValueError:
        return len(ids)


def _from_last(ids: list[int], token: int) -> list[int]:
    """The ids from the last place of a token on."""
    return ids[len(ids) - 1 - ids[::-1].index(token) :]
