"""One try at a task: its growing token streams, its readable messages, and the times of its stages."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from rewards.contracts import Ending
from rewards.errors import InfrastructureError
from rewards.sandbox.sandbox import queued_s
from rollout.agent.config import RolloutConfig
from rollout.agent.source import Score, Source
from rollout.agent.stream import TokenStream
from rollout.clock import now
from rollout.contracts import (
    AssistantTurn,
    Chat,
    Engine,
    Environment,
    EpisodeEnded,
    History,
    Observation,
    ToolCall,
    ToolSpec,
)
from rollout.plain import plain
from rollout.types import Message, SamplingParams, Span, StopReason, Task, Turn

CHARACTERS_PER_TOKEN = 64
"""An observation is cut to so many characters for each token of the context, which can hardly hold that much. To turn
an endless text into tokens would hold up all other episodes of the worker."""
COUNTS = ("turns", "tool_calls", "tool_errors", "tokens_sampled", "bridge_breaks")
"""What an episode counts, by the names in its metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The settings and services that all attempts of a group share. `seed` is the run's."""

    chat: Chat
    engine: Engine
    config: RolloutConfig
    seed: int
    _opened: list[tuple[Sequence[Message], Sequence[ToolSpec], list[int]]] = field(default_factory=list)

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """Return the tokens of the first prompt, which the attempts of a group have in common: it is rendered once."""
        for known_messages, known_tools, prompt in self._opened:
            if known_messages == messages and known_tools == tools:
                return prompt
        prompt = self.chat.open(messages, tools, self.config.thinking)
        self._opened.append((deepcopy(messages), deepcopy(tools), prompt))  # an environment may change its own
        return prompt


@dataclass(slots=True)
class Episode:
    """One try. The last of `streams` is the one that the model sees now; a fork adds a new one."""

    agent: Agent
    task: Task
    request_id: str
    streams: list[TokenStream] = field(default_factory=lambda: [TokenStream()])
    turns: list[Turn] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    """For people and rewards."""
    asked: int = 0
    """How many of the messages opened the conversation."""
    said: list[Message] = field(default_factory=list)
    """For the chat format: `History.messages`."""
    spans: list[Span] = field(default_factory=list)
    state_key: str | None = None
    """The name of the state that the next turn is taken in."""
    tool_s: list[float] = field(default_factory=list)
    """Seconds of each tool call, without the time that it waited for a slot of the sandbox."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    @property
    def stream(self) -> TokenStream:
        """The stream that the model sees now."""
        return self.streams[-1]

    async def act(self, environment: Environment, deadline: float) -> tuple[StopReason, str | None]:
        """Run the agent loop until it ends. Return the reason, and the answer if there is one."""
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await self._act(environment)
        except TimeoutError:
            if not limit.expired():
                raise
        if self._policy_spent_the_time():
            return "time_limit", None
        stage = self.spans[-1].name if self.spans else "start"
        raise InfrastructureError(f"trajectory_timeout_s={self.agent.config.trajectory_timeout_s:g} passed in {stage}")

    async def score(self, environment: Environment, source: Source, answer: str | None) -> Score:
        """Score the episode after it has ended."""
        ending = Ending(
            answer=answer,
            task=self.task.id,
            messages=self.messages,
            asked=self.asked,
            payload=self.task.payload,
            metadata=self.task.metadata,
            state=environment.final_state(),
            hosted=environment.hosted(),
        )
        with self.span("reward"):
            try:
                async with asyncio.timeout(self.agent.config.trajectory_timeout_s) as limit:
                    return await source.score(environment, ending)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise InfrastructureError(
                    f"scoring took longer than trajectory_timeout_s={self.agent.config.trajectory_timeout_s:g}"
                ) from None

    async def _act(self, environment: Environment) -> tuple[StopReason, str | None]:
        await self._open(environment)
        while True:
            turn, finished = await self._speak(environment)
            if not finished:
                return "token_limit", None
            if turn.malformed is not None:
                return "malformed", None
            try:
                shown = await self._react(environment, turn)
            except EpisodeEnded:
                return "environment", None if turn.tool_calls else turn.content
            if not shown:
                return "answered", turn.content
            if len(self.turns) == self.agent.config.max_turns:
                return "turn_limit", None
            if (stopped := self._go_on(shown, environment.tools)) is not None:
                return stopped, None

    async def _open(self, environment: Environment) -> None:
        opening = await environment.open(self.task.messages)
        self.asked = len(opening)
        self.messages += opening
        self.said += opening
        self.state_key = environment.first_state_key
        config = self.agent.config
        prompt = self.agent.open(opening, environment.tools)
        if len(prompt) >= config.max_context:
            raise InfrastructureError(
                f"the prompt of task {self.task.id} has {len(prompt)} tokens: raise "
                f"rollout.max_context={config.max_context}"
            )
        self.stream.observe(prompt)

    async def _speak(self, environment: Environment) -> tuple[AssistantTurn, bool]:
        """Append one completion as sampled. Return the parsed turn, and whether a stop token ended it."""
        request_id = f"{self.request_id}/{len(self.turns)}"
        sampling = self._sampling(request_id)
        with self.span("generate"):
            completion = await self.agent.engine.generate(request_id, self.stream.token_ids, sampling)
        if completion.finish_reason == "abort":
            raise InfrastructureError(f"the engine aborted request {request_id}")
        start = len(self.stream)
        self.stream.sampled(completion)
        self.said.append({"role": "assistant", "token_ids": completion.token_ids})
        self.turns.append(
            Turn(
                sample=len(self.streams) - 1,
                start=start,
                stop=len(self.stream),
                temperature=sampling.temperature,
                state_key=self.state_key,
            )
        )
        self.counts["turns"] += 1
        self.counts["tokens_sampled"] += len(completion.token_ids)
        turn = _bounded(self.agent.chat.parse(completion.token_ids, environment.tools))
        self.messages.append(_message(turn))
        return turn, completion.finish_reason == "stop"

    def _sampling(self, request_id: str) -> SamplingParams:
        config, sampling = self.agent.config, self.agent.config.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=min(sampling.max_tokens, config.max_context - len(self.stream)),
            stop_token_ids=self.agent.chat.stop_token_ids,
            seed=_sampling_seed(self.agent.seed, request_id),
        )

    async def _react(self, environment: Environment, turn: AssistantTurn) -> list[Message]:
        """Return the messages that follow a turn: tool results, or a reply; an empty list after a final answer."""
        if turn.tool_calls:
            return [await self._call(environment, call) for call in turn.tool_calls]
        with self.span("environment"):
            reply = await environment.reply(turn)
        return [] if reply is None else [self._observed(reply, "user")]

    async def _call(self, environment: Environment, call: ToolCall) -> Message:
        self.counts["tool_calls"] += 1
        queued_before = queued_s.get()
        try:
            with self.span("environment"):
                result = await environment.call(call)
        finally:
            self.tool_s.append(self.spans[-1].end - self.spans[-1].start - (queued_s.get() - queued_before))
        message = self._observed(result, "tool")
        self.counts["tool_errors"] += message["content"].startswith("error:")
        return message

    def _observed(self, shown: str | Observation, role: str) -> Message:
        """Record an observation: its message, the reward of the turn before it, and the state that it leads to."""
        observation = _checked(shown, CHARACTERS_PER_TOKEN * self.agent.config.max_context)
        if observation.reward is not None:
            self.turns[-1] = replace(self.turns[-1], reward=(self.turns[-1].reward or 0.0) + float(observation.reward))
        self.state_key = observation.state_key
        message = {"role": role, "content": observation.text}
        self.messages.append(message)
        return message

    def _go_on(self, shown: Sequence[Message], tools: Sequence[ToolSpec]) -> StopReason | None:
        """Show messages to the model, in its stream or in a new one. Return a stop reason if that is impossible."""
        config = self.agent.config
        history = History(messages=self.said, tools=tools)
        try:
            bridge = self.agent.chat.bridge(self.stream.token_ids, shown, config.thinking, history)
        except ValueError as error:
            # The format cannot continue the sampled tokens (a role marker within a turn, say). The policy caused that.
            self.messages[-len(shown) - 1]["malformed"] = str(error)
            return "malformed"
        kept = 0 if bridge.kind == "fork" else len(self.stream)
        if kept + len(bridge.token_ids) >= config.max_context:
            return "token_limit"
        if bridge.kind == "fork":
            self.streams.append(TokenStream())
            self.counts["bridge_breaks"] += bridge.broken
        self.said += shown
        self.stream.observe(bridge.token_ids)
        return None

    def span(self, name: str) -> _Timed:
        """Record how long a stage takes, in a `with` statement."""
        return _Timed(self.spans, name)

    def _policy_spent_the_time(self) -> bool:
        half = self.agent.config.trajectory_timeout_s / 2
        return sum(self.tool_s) >= half > max(self.tool_s, default=0.0)

    def metrics(self) -> dict[str, float]:
        """Return the counts of this try and the seconds of its stages."""
        seconds = dict.fromkeys(("generate", "environment", "reward"), 0.0)
        for span in self.spans:
            seconds[span.name] += span.end - span.start
        return {
            **{name: float(count) for name, count in self.counts.items()},
            **{f"{name}_s": total for name, total in seconds.items()},
            "tokens_observed": float(sum(map(len, self.streams)) - self.counts["tokens_sampled"]),
        }


class _Timed:
    """Appends a span when its `with` statement ends, however it does."""

    __slots__ = ("_name", "_spans", "_start")

    def __init__(self, spans: list[Span], name: str) -> None:
        self._spans, self._name = spans, name

    def __enter__(self) -> None:
        self._start = now()

    def __exit__(self, *_: object) -> None:
        self._spans.append(Span(name=self._name, start=self._start, end=now()))


def _bounded(turn: AssistantTurn) -> AssistantTurn:
    """The turn, if its arguments can travel and be stored (`rollout.plain`); else it is malformed."""
    try:
        calls = tuple(ToolCall(name=call.name, arguments=plain(call.arguments, call.name)) for call in turn.tool_calls)
    except ValueError as error:
        return AssistantTurn(content=turn.content, reasoning=turn.reasoning, malformed=f"the arguments of {error}")
    return replace(turn, tool_calls=calls)


def _checked(shown: str | Observation, characters: int) -> Observation:
    """What an environment shows, cut to so many characters.

    Raises:
        TypeError: it is neither a text nor an observation with one.
    """
    observation = Observation(shown) if isinstance(shown, str) else shown
    if not isinstance(observation, Observation) or not isinstance(observation.text, str):
        raise TypeError(f"the environment showed {shown!r:.100}, which is no text and no Observation with a text")
    if not isinstance(observation.state_key, str | None):
        raise TypeError(f"the environment named a state {observation.state_key!r:.100}, which is no text")
    if len(observation.text) <= characters:
        return observation
    more = len(observation.text) - characters
    return replace(observation, text=f"{observation.text[:characters]}… ({more} more characters)")


def _sampling_seed(seed: int, request_id: str) -> int:
    """Return 31 bits that depend only on the run's seed and the request id (group, member, try and turn)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{request_id}".encode()).digest()[:4]) >> 1


def _message(turn: AssistantTurn) -> Message:
    """Return a turn as a message for people and rewards. No prompt is ever rendered from it."""
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
