"""ChatML as SmolLM2-Instruct has it: `<|im_start|>role`, a line feed, the text, <|im_end|> and a line feed.

Models of this kind have no tokens for tools or reasoning. Tools are described in the system prompt, and calls and
reasoning are plain text: JSON between <tool_call> and </tool_call> (rollout.chat.json_calls), and what stands between
<think> and </think>. A tool's result is a message of the role `tool`. History is never edited, so a conversation is
only ever extended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rollout.chat.config import ChatmlSettings, RendererSettings
from rollout.chat.json_calls import described, read_turn, written
from rollout.chat.messages import defused_all, defused_message, special_tokens
from rollout.contracts import NOTHING_SAID, AssistantTurn, Continuation, History, ToolSpec
from rollout.types import Message, TokenIds


class Chatml:
    """The format `chatml`; see `rollout.contracts.Chat`."""

    def __init__(self, tokenizer: Any, settings: RendererSettings) -> None:
        """`tokenizer` is a fast Hugging Face tokenizer. Raises ValueError if it lacks a special token."""
        self.tokenizer = tokenizer
        self._system = settings.system if isinstance(settings, ChatmlSettings) else None
        self._special = special_tokens(tokenizer)
        self._begins, self._ends = self._token_id("<|im_start|>"), self._token_id("<|im_end|>")
        self._stop = tuple(dict.fromkeys((self._ends, *self._last_tokens())))
        self._speaks = [self._begins, *self._encode("assistant\n")]

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._stop

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        """Return the tokens of the first prompt, which end where the assistant begins to speak."""
        introduced = self._introduced(messages, tools)
        return [token for message in introduced for token in self._message(message, thinking)] + self._speaks

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> AssistantTurn:
        """Parse one completion, up to its first stop token; see `rollout.chat.json_calls.read_turn`."""
        ids = list(token_ids)
        return read_turn(self.decode(ids[: next((i for i, t in enumerate(ids) if t in self._stop), len(ids))]))

    def bridge(
        self, token_ids: TokenIds, messages: Sequence[Message], thinking: bool, history: History = NOTHING_SAID
    ) -> Continuation:
        """Return the tokens that show messages and let the assistant speak next. `history` is not looked at.

        Raises:
            ValueError: there is nothing to show, or nobody has spoken before.
        """
        ids = np.asarray(token_ids)
        if not messages or self._begins not in ids:
            raise ValueError(
                f"cannot bridge {len(ids)} tokens with {len(messages)} messages: "
                "a bridge follows an assistant turn and shows at least one message"
            )
        end = [] if ids[-1] in self._stop else [self._ends]
        shown = [token for message in messages for token in self._message(message, thinking)]
        return Continuation(kind="extension", token_ids=[*end, *self._encode("\n"), *shown, *self._speaks])

    def say(self, message: Message, thinking: bool) -> list[int]:
        """Return the tokens that an assistant samples to say `message`, and the token that ends its turn."""
        return [*self._encode(self._spoken(message, thinking)), self._ends]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included. It is for people to read, never to encode again."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _introduced(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
        """The messages behind a system prompt, which also tells of the tools."""
        first, *rest = messages
        system, others = (first["content"], rest) if first["role"] == "system" else (self._system, [first, *rest])
        parts = [part for part in (system, described(defused_all(tools, self._special)) if tools else None) if part]
        return [{"role": "system", "content": "\n\n".join(parts)}, *others] if parts else list(others)

    def _message(self, message: Message, thinking: bool) -> list[int]:
        """A whole message. What an assistant said is encoded apart from its role, as when it was sampled."""
        if message["role"] == "assistant":
            return [*self._speaks, *self.say(message, thinking), *self._encode("\n")]
        text = defused_message(message, self._special, keep_reasoning=False)["content"]
        return [self._begins, *self._encode(f"{message['role']}\n{text}"), self._ends, *self._encode("\n")]

    def _spoken(self, message: Message, thinking: bool) -> str:
        told = defused_message(message, self._special, keep_reasoning=thinking)
        reasoning, calls = told.get("reasoning_content"), told.get("tool_calls")
        parts = [f"<think>\n{reasoning}\n</think>\n\n" if reasoning else "", told.get("content") or ""]
        if calls:
            parts += ["\n" if parts[1] else "", written(calls)]
        return "".join(parts)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _last_tokens(self) -> list[int]:
        """The tokens that end a whole text, as far as the tokenizer has them."""
        known = self.tokenizer.get_added_vocab()
        return [known[token] for token in ("<|endoftext|>", self.tokenizer.eos_token) if token in known]

    def _token_id(self, token: str) -> int:
        known: dict[str, int] = self.tokenizer.get_added_vocab()
        if token not in known:
            raise ValueError(f"the tokenizer has no token {token!r}; ChatML needs it as a special token")
        return known[token]
