"""Environment `store`: a small stateful back end (who is where), judged on its final state (rewards.scorers.state).

The model is asked for a change that may need several calls (read one name, write another). Names that the request does
not mention must stay as they were. The oracle is a noisy demonstrator, see rollout.envs.python.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.state import state_reward
from rollout.contracts import Environment, EnvironmentSpec, ToolCall
from rollout.envs.arguments import checked_arguments, function_tool
from rollout.envs.common import ANIMALS, ITEMS, PLACES, calls, draw, says
from rollout.types import Message, Split, Task

TOOLS = (
    function_tool("get", "Where is it?", {"name": "string"}),
    function_tool("set", "Put it somewhere.", {"name": "string", "place": "string"}),
    function_tool("delete", "Forget it.", {"name": "string"}),
)
BYSTANDERS = 2
"""Names in the store that the request does not mention."""

P_FORGET = 0.4
"""Probability that the oracle says it is done before the last call."""
P_WRONG_TOOL = 0.4
"""Probability that an oracle that makes the last call only reads in it."""

PHRASINGS = {
    "set": ("Put {item} in {place}.", "Please put {item} in {place}."),
    "copy": ("Put {animal} where {item} is.", "Please put {animal} where {item} is."),
    "delete": ("Forget {item} and {animal}.", "Please forget {item} and {animal}."),
}


@dataclass(frozen=True, slots=True)
class Request:
    kind: str
    item: str
    animal: str
    place: str

    @property
    def content(self) -> str:
        return f"{self.kind} {self.item} {self.place if self.kind == 'set' else self.animal}"

    def text(self, rng: random.Random) -> str:
        phrasing = rng.choice(PHRASINGS[self.kind])
        return phrasing.format(item=self.item, animal=self.animal, place=self.place)

    def plan(self, state: Mapping[str, str]) -> list[ToolCall]:
        """Return the calls that fulfil the request."""
        if self.kind == "set":
            return [ToolCall(name="set", arguments={"name": self.item, "place": self.place})]
        if self.kind == "copy":
            read = ToolCall(name="get", arguments={"name": self.item})
            return [read, ToolCall(name="set", arguments={"name": self.animal, "place": state[self.item]})]
        return [ToolCall(name="delete", arguments={"name": name}) for name in (self.item, self.animal)]


class StorePayload(BaseModel):
    """What a row for this environment must hold: where everything is, and where it should be in the end."""

    state: dict[str, Any]
    goal: dict[str, Any]


class StoreRequests(EnvironmentSpec):
    """Generates requests, the oracle's conversations and episodes."""

    name = "store"
    payload = StorePayload
    reward_parts = ("state",)

    def generate(self, index: int, seed: int, split: Split) -> Task:
        request, rng = draw(_sample, lambda r: r.content, environment=self.name, index=index, seed=seed, split=split)
        state = _initial_state(request, rng)
        goal = dict(state)
        for call in request.plan(state):
            apply(goal, call)
        return Task(
            id=f"{self.name}-{split}-{seed}-{index}",
            environment=self.name,
            messages=({"role": "user", "content": request.text(rng)},),
            payload={"request": asdict(request), "state": state, "goal": goal},
            metadata={"kind": request.kind},
        )

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """Return the oracle's conversation. Its mistakes are drawn from `rng`; calls are applied to a real state."""
        state = dict(task.payload["state"])
        plan = Request(**task.payload["request"]).plan(state)
        if rng.random() < P_FORGET:
            plan = plan[:-1]
        elif rng.random() < P_WRONG_TOOL:
            plan[-1] = ToolCall(name="get", arguments={"name": plan[-1].arguments["name"]})
        messages: list[Message] = list(task.messages)
        for step, call in enumerate(plan):
            messages += calls(call, "And now the rest." if step else "I use the store.", apply(state, call))
        return [*messages, says("done", "All is done.")]

    def make(self, task: Task, sandbox: Sandbox) -> StoreEpisode:
        return StoreEpisode(task.payload["state"], task.payload["goal"])


class StoreEpisode(Environment):
    """One request being fulfilled, on its own copy of the state."""

    tools = TOOLS

    def __init__(self, state: Mapping[str, Any], goal: Mapping[str, Any]) -> None:
        self._state = dict(state)
        self._goal = goal

    async def call(self, call: ToolCall) -> str:
        arguments = checked_arguments(call, TOOLS)
        if isinstance(arguments, str):
            return arguments
        return apply(self._state, ToolCall(name=call.name, arguments=arguments))

    async def score(self, answer: str | None) -> dict[str, float]:
        return {"state": state_reward(self._state, self._goal) if answer is not None else 0.0}

    def final_state(self) -> dict[str, Any]:
        return self._state


def apply(state: dict[str, Any], call: ToolCall) -> str:
    """Carry out one well-formed call on `state`, in place. Return the text that says what happened. A place that is no
    text, from a dataset's row, is shown as JSON."""
    name = call.arguments["name"]
    if call.name == "set":
        state[name] = call.arguments["place"]
        return "ok"
    if name not in state:
        return f"error: no {name}"
    if call.name == "delete":
        return _delete(state, name)
    return state[name] if isinstance(state[name], str) else json.dumps(state[name], ensure_ascii=False)


def _delete(state: dict[str, Any], name: str) -> str:
    del state[name]
    return "ok"


def _sample(rng: random.Random) -> Request:
    return Request(rng.choice(tuple(PHRASINGS)), rng.choice(ITEMS), rng.choice(ANIMALS), rng.choice(PLACES))


def _initial_state(request: Request, rng: random.Random) -> dict[str, str]:
    """Return places of the names that must be there, and of bystanders. A name to be written is not there yet."""
    others = rng.sample([n for n in (*ITEMS, *ANIMALS) if n not in (request.item, request.animal)], BYSTANDERS)
    needed = {"set": [], "copy": [request.item], "delete": [request.item, request.animal]}[request.kind]
    return {name: rng.choice(PLACES) for name in sorted([*needed, *others])}
