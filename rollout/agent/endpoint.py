"""A model behind an OpenAI-compatible endpoint in the place of an engine, for evaluations.

Such an endpoint speaks in messages, and the agent loop in tokens. So here the conversation travels as bytes: each chunk
is JSON, and ends with a mark. `EndpointChat` writes and reads the chunks, and `EndpointEngine` turns a prompt back into
messages. None of it can be trained: there are no tokens of the model's, and no logprobs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import openai

from rewards.errors import InfrastructureError
from rewards.scorers.remote import Again, Remote, retry_after_s
from rollout.contracts import AssistantTurn, Continuation, EngineError, History, ToolCall, ToolSpec
from rollout.types import Completion, Message, SamplingParams, TokenIds

SAID, SHOWN = 256, 257
"""The marks behind what the model said, and behind what it was shown."""
CONTEXT = 10**9
"""Bytes of a conversation: the endpoint knows its own limit."""


class EndpointChat:
    """The chat format (`rollout.contracts.Chat`) in which a conversation travels to an endpoint."""

    stop_token_ids = (SAID,)

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        return _chunk({"messages": list(messages), "tools": list(tools)}, SHOWN)

    def bridge(
        self, token_ids: TokenIds, messages: Sequence[Message], thinking: bool, history: History
    ) -> Continuation:
        return Continuation(kind="extension", token_ids=_chunk({"messages": list(messages)}, SHOWN))

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec]) -> AssistantTurn:
        (said,) = _chunks(token_ids)
        try:
            calls = tuple(ToolCall(name=c["name"], arguments=_object(c["arguments"])) for c in said["calls"])
        except ValueError as error:
            return AssistantTurn(content=said["content"], reasoning=said["reasoning"], malformed=str(error))
        return AssistantTurn(content=said["content"], reasoning=said["reasoning"], tool_calls=calls)

    def say(self, message: Message, thinking: bool) -> list[int]:
        raise NotImplementedError("an endpoint speaks for itself")

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(json.dumps, _chunks(token_ids)))


class EndpointEngine:
    """The engine (`rollout.contracts.Engine`): each completion is a request."""

    def __init__(self, base_url: str, model: str, remote: Remote, *, api_key: str | None, timeout_s: float) -> None:
        """`remote` makes the requests."""
        self._where, self._model = base_url, model
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key or "none", timeout=timeout_s, max_retries=0
        )
        self._remote = remote

    async def generate(self, request_id: str, prompt_token_ids: TokenIds, sampling: SamplingParams) -> Completion:
        """Raises EngineError if the endpoint refuses, or fails each time."""
        messages, tools = conversation(prompt_token_ids)
        given: dict[str, Any] = {"model": self._model, "messages": messages, "max_tokens": sampling.max_tokens}
        given |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        if tools:
            given["tools"] = tools
        try:
            choice = await self._remote(lambda: self._ask(given))
        except (InfrastructureError, openai.APIError) as error:
            raise EngineError(f"the endpoint {self._where}: {error}") from error
        finished = choice.finish_reason != "length"
        said = _chunk(_said(choice.message), SAID)
        return Completion(
            token_ids=tuple(said),
            logprobs=np.zeros(len(said), np.float32),
            versions=np.zeros(len(said), np.int32),
            finish_reason="stop" if finished else "length",
        )

    async def _ask(self, given: Mapping[str, Any]) -> Any:
        try:
            reply = await self._client.chat.completions.create(**given)
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            response = getattr(error, "response", None)
            after = None if response is None else retry_after_s(response.headers)
            raise Again(f"{type(error).__name__} {error}", after) from error
        if not reply.choices:
            raise Again("it answered without a choice")
        return reply.choices[0]


def conversation(token_ids: TokenIds) -> tuple[list[Message], list[ToolSpec]]:
    """The messages of a prompt, with the ids that join calls and results, and the tools."""
    messages: list[Message] = []
    tools: list[ToolSpec] = []
    waiting: list[str] = []
    for chunk in _chunks(token_ids):
        if "calls" in chunk:
            waiting = [call["id"] for call in chunk["calls"]]
            messages.append(_as_message(chunk))
            continue
        tools += chunk.get("tools", [])
        for message in chunk["messages"]:
            joined = {"tool_call_id": waiting.pop(0)} if message["role"] == "tool" and waiting else {}
            messages.append(message | joined)
    return messages, tools


def _said(message: Any) -> dict[str, Any]:
    calls = [
        {"id": call.id, "name": call.function.name, "arguments": call.function.arguments or "{}"}
        for call in message.tool_calls or ()
    ]
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""
    return {"content": message.content or "", "reasoning": reasoning, "calls": calls}


def _as_message(said: Mapping[str, Any]) -> Message:
    calls = [
        {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
        for c in said["calls"]
    ]
    message: Message = {"role": "assistant", "content": said["content"]}
    return message | ({"tool_calls": calls} if calls else {})


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"arguments that are not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(found, dict):
        raise ValueError(f"arguments that are no object: {text[:100]}")
    return found


def _chunk(content: Mapping[str, Any], mark: int) -> list[int]:
    return [*json.dumps(content).encode(), mark]


def _chunks(token_ids: Sequence[int] | TokenIds) -> Iterator[dict[str, Any]]:
    text = bytearray()
    for token in token_ids:
        if token < SAID:
            text.append(int(token))
        else:
            yield json.loads(text)
            text.clear()
