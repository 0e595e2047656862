"""One try at a task: the growing token stream, its readable messages, and what took how long."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rewards.errors import InfrastructureError
from rewards.sandbox.sandbox import queued_s
from rollout.agent.config import RolloutConfig
from rollout.agent.stream import TokenStream
from rollout.contracts import AssistantTurn, Chat, Engine, Environment, EpisodeEnded, ToolCall
from rollout.types import Message, SamplingParams, Span, StopReason, Task


@dataclass(slots=True)
class Episode:
    """One try: the growing stream, its readable messages, and what took how long."""

    task: Task
    chat: Chat
    engine: Engine
    config: RolloutConfig
    request_id: str
    seed: int
    stream: TokenStream = field(default_factory=TokenStream)
    messages: list[Message] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    tool_s: list[float] = field(default_factory=list)
    """Seconds of each tool call, without its waiting for a slot of the sandbox."""
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("turns", "tool_calls", "tool_errors", "tokens_sampled"), 0)
    )

    async def act(self, environment: Environment, deadline: float) -> tuple[StopReason, str | None]:
        """Loop until something ends it. Returns why, and the answer if there is one."""
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await self._turns(environment)
        except TimeoutError:
            if not limit.expired():
                raise
        if self._policy_spent_the_time():
            return "time_limit", None
        stage = self.spans[-1].name if self.spans else "start"
        raise InfrastructureError(f"trajectory_timeout_s={self.config.trajectory_timeout_s:g} passed in {stage}")

    async def score(self, environment: Environment, answer: str | None) -> dict[str, float]:
        with self.span("reward"):
            try:
                async with asyncio.timeout(self.config.trajectory_timeout_s) as limit:
                    return await environment.score(answer)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise InfrastructureError(
                    f"scoring took longer than trajectory_timeout_s={self.config.trajectory_timeout_s:g}"
                ) from None

    async def _turns(self, environment: Environment) -> tuple[StopReason, str | None]:
        self.messages += self.task.messages
        prompt = self.chat.open(self.task.messages, environment.tools, self.config.thinking)
        if len(prompt) >= self.config.max_context:
            raise InfrastructureError(
                f"the prompt of task {self.task.id} has {len(prompt)} tokens: raise "
                f"rollout.max_context={self.config.max_context}"
            )
        self.stream.observe(prompt)
        while True:
            turn, finished = await self._speak(environment)
            if not finished:
                return "token_limit", None
            if turn.malformed is not None:
                return "malformed", None
            if not turn.tool_calls:
                return "answered", turn.content
            try:
                results = [await self._call(environment, call) for call in turn.tool_calls]
            except EpisodeEnded:
                return "environment", None
            if self.counts["turns"] == self.config.max_turns:
                return "turn_limit", None
            try:
                shown = self.chat.bridge(self.stream.token_ids, results)
            except ValueError as error:
                # Nothing can follow what was sampled (a role marker within a turn, say): the policy's doing.
                self.messages[-len(results) - 1]["malformed"] = str(error)
                return "malformed", None
            if len(self.stream) + len(shown) >= self.config.max_context:
                return "token_limit", None
            self.stream.observe(shown)

    async def _speak(self, environment: Environment) -> tuple[AssistantTurn, bool]:
        """One completion, appended as sampled. Returns what it says, and whether it was finished."""
        request_id = f"{self.request_id}/{self.counts['turns']}"
        sampling = self.config.sampling
        with self.span("generate"):
            completion = await self.engine.generate(
                request_id,
                self.stream.token_ids,
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    max_tokens=min(sampling.max_tokens, self.config.max_context - len(self.stream)),
                    stop_token_ids=self.chat.stop_token_ids,
                    seed=_sampling_seed(self.seed, request_id),
                ),
            )
        if completion.finish_reason == "abort":
            raise InfrastructureError(f"the engine aborted request {request_id}")
        self.stream.sampled(completion)
        self.counts["turns"] += 1
        self.counts["tokens_sampled"] += len(completion.token_ids)
        turn = self.chat.parse(completion.token_ids, environment.tools)
        self.messages.append(_message(turn))
        return turn, completion.finish_reason == "stop"

    async def _call(self, environment: Environment, call: ToolCall) -> str:
        self.counts["tool_calls"] += 1
        queued_before = queued_s.get()
        try:
            with self.span("environment"):
                result = await environment.call(call)
        finally:
            self.tool_s.append(self.spans[-1].end - self.spans[-1].start - (queued_s.get() - queued_before))
        self.counts["tool_errors"] += result.startswith("error:")
        self.messages.append({"role": "tool", "content": result})
        return result

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.spans.append(Span(name=name, start=start, end=time.monotonic()))

    def _policy_spent_the_time(self) -> bool:
        half = self.config.trajectory_timeout_s / 2
        return sum(self.tool_s) >= half > max(self.tool_s, default=0.0)

    def metrics(self, attempt: int) -> dict[str, float]:
        seconds = dict.fromkeys(("generate", "environment", "reward"), 0.0)
        for span in self.spans:
            seconds[span.name] += span.end - span.start
        return {
            **{name: float(count) for name, count in self.counts.items()},
            **{f"{name}_s": total for name, total in seconds.items()},
            "tokens_observed": float(len(self.stream) - self.counts["tokens_sampled"]),
            "infra_retries": float(attempt),
        }


def _sampling_seed(seed: int, request_id: str) -> int:
    """31 bits that depend on the run's seed and on group, member, try and turn (the parts of the request id) only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{request_id}".encode()).digest()[:4]) >> 1


def _message(turn: AssistantTurn) -> Message:
    """A turn for people to read; nothing is ever rendered from it."""
    message: Message = {"role": "assistant", "content": turn.content}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = _tool_calls(turn.tool_calls)
    if turn.malformed is not None:
        message["malformed"] = turn.malformed
    return message


def _tool_calls(calls: Sequence[ToolCall]) -> list[dict[str, object]]:
    return [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls]
