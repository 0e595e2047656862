"""Environment `store`: a small stateful key-value back end, judged on the state it is left in (rewards.state).

The model is asked for a change that may need several calls (read one key, write another). Keys that were not mentioned
must stay as they were. The oracle is a noisy demonstrator, see rollout.envs.python.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from rewards.sandbox import Sandbox
from rewards.state import state_reward
from rollout.environment import Split, ToolCall
from rollout.envs.common import calls, checked_arguments, draw, function_tool, says
from rollout.types import Message, Task

TOOLS = (
    function_tool("get", "Read a key.", {"key": "string"}),
    function_tool("set", "Write a key.", {"key": "string", "value": "integer"}),
    function_tool("delete", "Remove a key.", {"key": "string"}),
)
SLOTS = tuple(str(number) for number in range(10, 100))
BYSTANDERS = 2
"""Keys in the store that the request does not mention."""

P_FORGET = 0.3
"""The oracle says it is done before the last call."""
P_WRONG_KEY = 0.3
"""Otherwise: its last call goes to the other number of the request."""

PHRASINGS = {
    "set": ("Set slot {a} to {b}.", "Please set slot {a} to {b}."),
    "copy": ("Copy slot {a} to slot {b}.", "Please copy slot {a} to slot {b}."),
    "delete": ("Clear slot {a} and slot {b}.", "Please clear slot {a} and slot {b}."),
}


@dataclass(frozen=True, slots=True)
class Request:
    kind: str
    a: str
    b: str

    @property
    def content(self) -> str:
        return f"{self.kind} {self.a} {self.b}"


class StoreRequests:
    """The specification: where requests come from, how the oracle fulfils them, how an episode is made."""

    name = "store"

    def generate(self, index: int, seed: int, split: Split) -> Task:
        request, rng = draw(_sample, lambda r: r.content, environment=self.name, index=index, seed=seed, split=split)
        state = _initial_state(request, rng)
        text = rng.choice(PHRASINGS[request.kind]).format(a=request.a, b=request.b)
        plan = _plan(request.kind, request.a, request.b, state)
        goal = dict(state)
        for call in plan:
            apply(goal, call)
        return Task(
            id=f"{self.name}-{split}-{seed}-{index}",
            environment=self.name,
            messages=({"role": "user", "content": text},),
            payload={"kind": request.kind, "a": request.a, "b": request.b, "state": state, "goal": goal},
            metadata={"kind": request.kind},
        )

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """The oracle's conversation. Its mistakes are drawn from `rng`; its calls are applied to a real state."""
        p = task.payload
        state = dict(p["state"])
        plan = _plan(p["kind"], p["a"], p["b"], state)
        if rng.random() < P_FORGET:
            plan = plan[:-1]
        elif rng.random() < P_WRONG_KEY:
            wrong = p["b"] if plan[-1].arguments["key"] == p["a"] else p["a"]
            plan[-1] = ToolCall(name=plan[-1].name, arguments={**plan[-1].arguments, "key": wrong})
        messages: list[Message] = list(task.messages)
        for call in plan:
            messages += calls(call, "I use the store.", apply(state, call))
        return [*messages, says("done", "All is done.")]

    def make(self, task: Task, sandbox: Sandbox) -> StoreEpisode:
        return StoreEpisode(task.payload["state"], task.payload["goal"])


class StoreEpisode:
    """One request being fulfilled, on its own copy of the state."""

    tools = TOOLS

    def __init__(self, state: Mapping[str, int], goal: Mapping[str, int]) -> None:
        self.state = dict(state)
        self._goal = goal

    async def call(self, call: ToolCall) -> str:
        arguments = checked_arguments(call, TOOLS)
        if isinstance(arguments, str):
            return arguments
        return apply(self.state, ToolCall(name=call.name, arguments=arguments))

    async def score(self, answer: str | None) -> dict[str, float]:
        return {"state": state_reward(self.state, self._goal) if answer is not None else 0.0}

    async def close(self) -> None:
        """Nothing is held."""


def apply(state: dict[str, int], call: ToolCall) -> str:
    """Carry out one well-formed call on `state`, in place, and say what happened."""
    key = call.arguments["key"]
    if call.name == "set":
        state[key] = call.arguments["value"]
        return "ok"
    if key not in state:
        return f"error: no key {key}"
    return str(state[key]) if call.name == "get" else _delete(state, key)


def _delete(state: dict[str, int], key: str) -> str:
    del state[key]
    return "ok"


def _plan(kind: str, a: str, b: str, state: Mapping[str, int]) -> list[ToolCall]:
    """The calls that fulfil a request."""
    if kind == "set":
        return [ToolCall(name="set", arguments={"key": a, "value": int(b)})]
    if kind == "copy":
        read = ToolCall(name="get", arguments={"key": a})
        return [read, ToolCall(name="set", arguments={"key": b, "value": state[a]})]
    return [ToolCall(name="delete", arguments={"key": key}) for key in (a, b)]


def _sample(rng: random.Random) -> Request:
    a, b = rng.sample(SLOTS, 2)
    return Request(rng.choice(tuple(PHRASINGS)), a, b)


def _initial_state(request: Request, rng: random.Random) -> dict[str, int]:
    """Values for the keys that must exist, and for bystanders. The key to be written may or may not exist."""
    others = rng.sample([slot for slot in SLOTS if slot not in (request.a, request.b)], BYSTANDERS)
    needed = [] if request.kind == "set" else [request.a]
    needed += [request.b] if request.kind == "delete" else []
    return {key: rng.randint(10, 99) for key in sorted([*needed, *others])}
