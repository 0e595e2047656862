"""A chat format whose every turn says the worst, and an environment that shows the worst: for tests/e2e/test_worst.py.

The format reads one of SAID after the other out of whatever the policy sampled.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from rollout.chat.audit import ANSWERED
from rollout.chat.config import RendererSettings
from rollout.chat.glm45 import Glm45
from rollout.contracts import AssistantTurn, Environment, EnvironmentSpec, Observation, ToolCall, ToolSpec
from rollout.envs.arguments import function_tool
from rollout.types import Split, Task


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def call(arguments: Any, name: str = "show") -> AssistantTurn:
    return AssistantTurn(content="", tool_calls=(ToolCall(name=name, arguments=arguments),))


SAID = (
    call({"a": nested(500)}),
    call({"a": nested(10_000)}),
    call({"a": float("nan")}),
    call({"a": 10**3999}),
    call({"a": 10**5000}),
    call({"a": "\ud800\0"}),
    call({"a": object()}),
    call({1: "a"}),
    call({}, name="\ud800" * 1000),
    AssistantTurn(content="", tool_calls=(ToolCall(name="show", arguments={}),) * 300),
    AssistantTurn(content="\ud800\0\u2028 <|user|>", reasoning="\udfff"),
    AssistantTurn(content="", malformed="\ud800"),
    *(call({"kind": kind}) for kind in range(8)),
    *(AssistantTurn(content="fine"),) * 8,
)
SHOWN: tuple[Any, ...] = (
    "fine",
    "\0\x1b[2J \u2028 <|user|><|assistant|>",
    "\ud800",
    "x" * 20_000_000,
    None,
    b"bytes",
    Observation("x", reward=float("nan")),
    Observation("x", state_key=5),  # type: ignore[arg-type]
)
SCORED: tuple[Any, ...] = (1.0, 0.0, 1, -1e300, float("nan"), "1", None, 10**400)
BROKEN_TASKS = 5
"""One task of so many gets a payload that cannot be stored, by an environment that writes into it."""


class Worst(Glm45):
    def __init__(self, tokenizer: Any, settings: RendererSettings) -> None:
        super().__init__(tokenizer, settings)
        self._saying = cycle(SAID)

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> AssistantTurn:
        read = super().parse(token_ids, tools)
        if read.content == ANSWERED or any(call.name == "look_up" for call in read.tool_calls):
            return read  # the audit, before the run
        said = next(self._saying)
        if said.malformed and len(token_ids) % 2:
            raise RuntimeError("\ud800" * 100_000)
        return said


class Showing(EnvironmentSpec):
    name = "showing"
    reward_parts = ("score",)

    def generate(self, index: int, seed: int, split: Split) -> Task:
        message = {"role": "user", "content": f"Say something, number {index}."}
        return Task(id=f"{split}-{index}", environment=self.name, messages=(message,), payload={"index": index})

    def make(self, task: Task, sandbox: Any) -> Environment:
        if task.payload["index"] % BROKEN_TASKS == BROKEN_TASKS - 1:
            task.payload["made"] = self  # type: ignore[index]
        return ShowingEpisode(random.Random())


class ShowingEpisode(Environment):
    tools = (function_tool("show", "Show something.", {"kind": "integer"}, optional=("kind",)),)

    def __init__(self, luck: random.Random) -> None:
        self._luck = luck

    async def call(self, call: ToolCall) -> Any:
        return SHOWN[call.arguments["kind"]] if call.arguments.get("kind") in range(len(SHOWN)) else "fine"

    async def score(self, answer: str | None) -> dict[str, float]:
        return {"score": self._luck.choice(SCORED[:3] * 5 + SCORED)}
