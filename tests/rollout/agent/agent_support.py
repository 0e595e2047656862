"""An agent loop without a model: a byte-level chat, an environment that counts, an engine that follows a script."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewards.compose import compose
from rewards.contracts import Ending
from rewards.sandbox.sandbox import queued_s
from rollout.agent.config import RolloutConfig, SamplingConfig
from rollout.agent.episode import Agent
from rollout.agent.loop import run_agent
from rollout.agent.source import Score
from rollout.contracts import AssistantTurn, Continuation, Environment, History, Observation, ToolCall, ToolSpec
from rollout.types import Completion, Message, SamplingParams, Task, TokenIds, Trajectory

STOP, TOOL, ASSISTANT, USER = 256, 257, 258, 259
TASK = Task(
    id="t",
    environment="counter",
    messages=({"role": "user", "content": "count to 2"},),
    payload={"goal": 2},
    metadata={"kind": "easy"},
)
CONFIG = RolloutConfig(
    group_size=3,
    max_turns=4,
    max_context=400,
    infra_retries=1,
    trajectory_timeout_s=20.0,
    sampling=SamplingConfig(max_tokens=100, temperature=0.7),
)


class ByteChat:
    """A chat format whose tokens are bytes and four markers. `CALL name {json}` lines are tool calls, what stands
    before a `|` is reasoning, and no message can follow a `!`. It keeps the tools and modes that it is asked for."""

    stop_token_ids = (STOP,)

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.histories: list[tuple[Any, Any]] = []

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        self.asked.append(("open", tools, thinking))
        return [*"\n".join(str(m["content"]) for m in messages).encode(), ASSISTANT]

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec]) -> AssistantTurn:
        self.asked.append(("parse", tools))
        reasoning, _, text = bytes(t for t in token_ids if t < 256).decode(errors="replace").rpartition("|")
        lines = [line for line in text.split("\n") if line.startswith("CALL ")]
        try:
            calls = tuple(ToolCall(name=n, arguments=json.loads(a)) for n, a in (x[5:].split(" ", 1) for x in lines))
        except ValueError as error:
            return AssistantTurn(content=text, malformed=str(error))
        return AssistantTurn(content=text, reasoning=reasoning, tool_calls=calls)

    def bridge(
        self, token_ids: TokenIds, messages: Sequence[Message], thinking: bool, history: History
    ) -> Continuation:
        """Append the messages. If the first begins with `fork`, the model forgets all it saw but the first token; with
        `fork!` because a rendering was broken."""
        self.asked.append(("bridge", thinking))
        self.histories.append((tuple(history.messages), tuple(history.tools)))
        if ord("!") in token_ids:
            raise ValueError("nothing can follow")
        marks = {"tool": TOOL, "user": USER}
        shown = [token for m in messages for token in (marks[m["role"]], *m["content"].encode())] + [ASSISTANT]
        if messages[0]["content"].startswith("fork"):
            broken = messages[0]["content"].startswith("fork!")
            return Continuation(kind="fork", token_ids=[int(token_ids[0]), *shown], broken=broken)
        return Continuation(kind="extension", token_ids=shown)

    def say(self, message: Message, thinking: bool) -> list[int]:
        raise NotImplementedError("nothing is demonstrated in this format")

    def decode(self, token_ids: Sequence[int]) -> str:
        raise NotImplementedError


@dataclass
class Counter(Environment):
    """An environment with a tool that counts, two that take time, and one that calls `trouble`. It gives its `replies`
    one after the other, to turns without a call."""

    trouble: Callable[[], Any] = lambda: None
    count: int = 0
    closed: int = 0
    answers: list[str | None] = field(default_factory=list)
    replies: list[str | Observation | Exception] = field(default_factory=list)
    tools: tuple[ToolSpec, ...] = ({"type": "function", "function": {"name": "add"}},)
    first_state_key: str | None = "s0"

    async def call(self, call: ToolCall) -> str | Observation:
        if call.name == "wait":
            await asyncio.sleep(call.arguments["s"])
            return "waited"
        if call.name == "queue":
            start = time.monotonic()
            try:
                await asyncio.sleep(call.arguments["s"])
            finally:
                queued_s.set(queued_s.get() + time.monotonic() - start)
            return "queued"
        if call.name == "trouble":
            return str(self.trouble())
        if call.name != "add":
            return f"error: unknown tool {call.name}"
        self.count += 1
        return Observation(f"count is {self.count}", reward=0.5, state_key=f"s{self.count}")

    async def reply(self, turn: AssistantTurn) -> str | Observation | None:
        if not self.replies:
            return None
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def score(self, answer: str | None) -> dict[str, float]:
        assert not self.closed
        self.answers.append(answer)
        return {"right": float(answer == str(self.count)), "counted": float(self.count)}

    def final_state(self) -> dict[str, int]:
        return {"count": self.count}

    async def close(self) -> None:
        self.closed += 1


@dataclass
class ScriptedEngine:
    """An engine that follows a script: entry i is what turn i says, in every member and try. Text and token ids are
    sampled, an exception is raised, a pair is seconds to wait and then an entry, and a function makes an entry from the
    request id."""

    script: Sequence[Any]
    seen: list[tuple[str, list[int], SamplingParams, Completion]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    async def generate(self, request_id: str, prompt_token_ids: TokenIds, sampling: SamplingParams) -> Completion:
        self.requests.append(request_id)
        await asyncio.sleep(0)
        say = self.script[int(request_id.split("/")[-1])]
        if callable(say):
            say = say(request_id)
        if isinstance(say, tuple):
            seconds, say = say
            await asyncio.sleep(seconds)
        if isinstance(say, Exception):
            raise say
        ids = ([*say.encode(), STOP] if isinstance(say, str) else list(say))[: sampling.max_tokens]
        version = len(self.seen)
        completion = Completion(
            token_ids=tuple(ids),
            logprobs=tuple(-0.001 * (i + 1) for i in range(len(ids))),
            versions=tuple(version + (i > 2) for i in range(len(ids))),
            finish_reason="stop" if ids and ids[-1] == STOP else "length",
        )
        self.seen.append((request_id, np.asarray(prompt_token_ids).tolist(), sampling, completion))
        return completion


@dataclass
class Counters:
    """A source of `Counter` environments. It keeps those that it made, and what it scored."""

    compares = False

    weights: dict[str, float] = field(default_factory=lambda: {"counted": 0.0})
    environment: type[Counter] = Counter
    how: dict[str, Any] = field(default_factory=dict)
    made: list[Counter] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    def make(self, task: Task) -> Counter:
        self.made.append(self.environment(**self.how))
        return self.made[-1]

    async def score(self, environment: Environment, ending: Ending) -> Score:
        self.endings.append(ending)
        parts = await environment.score(ending.answer)
        reward = compose(parts, self.weights)
        return Score(reward=reward, parts=parts, success=reward >= 1.0)


def agent(engine: Any, config: RolloutConfig = CONFIG, seed: int = 5) -> Agent:
    return Agent(chat=ByteChat(), engine=engine, config=config, seed=seed)


def act(
    script: Sequence[Any],
    *,
    config: RolloutConfig = CONFIG,
    weights: dict[str, float] | None = None,
    seed: int = 5,
    **how: Any,
) -> tuple[Trajectory, ScriptedEngine, list[Counter]]:
    engine, source = ScriptedEngine(script), Counters(how=how)
    if weights is not None:
        source.weights = weights
    running = run_agent(agent(engine, config, seed), source, TASK, "g", "g/0")  # type: ignore[arg-type]
    return asyncio.run(running), engine, source.made
