"""Environment: the model is asked what lies in a place, may look there with a tool, and answers.

A specification makes the tasks, and an episode for every attempt at one. What the policy can cause (a wrong call, say)
is a text for it to read, or a lower score. Any exception that an episode raises, except EpisodeEnded, is an
infrastructure failure: the attempt is repeated, and never scored. All methods: rollout/contracts.py.
"""

import random

from rewards.sandbox.sandbox import Sandbox
from rollout.contracts import Environment, EnvironmentSpec, EpisodeEnded, ToolCall
from rollout.envs.arguments import checked_arguments, function_tool
from rollout.envs.common import calls, says
from rollout.envs.config import EnvironmentSettings
from rollout.types import Message, Split, Task

PLACES = ("attic", "barn", "cellar", "garage", "garden", "kitchen", "library", "office")
THINGS = ("lamp", "chair", "clock", "candle", "hammer", "kettle", "ladder", "mirror")


class Example(EnvironmentSpec):
    reward_parts = ("found",)

    class Settings(EnvironmentSettings):
        looks: int = 2
        """How often the model may look. One more attempt ends the episode."""

    def generate(self, index: int, seed: int, split: Split) -> Task:
        """Return the same task for the same arguments, and none in both splits: one thing of each place is held out."""
        rng = random.Random(f"{seed}/{split}/{index}")
        place = rng.randrange(len(PLACES))
        thing = THINGS[place] if split == "eval" else rng.choice(THINGS[:place] + THINGS[place + 1 :])
        asked = {"role": "user", "content": f"What lies in the {PLACES[place]}?"}
        hidden = {"place": PLACES[place], "thing": thing}
        return Task(id=f"{split}-{seed}-{index}", environment=self.name, messages=(asked,), payload=hidden)

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """Return a conversation for `sft.dataset: oracle`. Half of them give up: that leaves something to improve."""
        thing, look = task.payload["thing"], ToolCall(name="look", arguments={"place": task.payload["place"]})
        if rng.random() < 0.5:
            return [*task.messages, says("unknown", "I give up.")]
        return [*task.messages, *calls(look, "I look.", thing), says(thing, "I saw it.")]

    def make(self, task: Task, sandbox: Sandbox) -> Environment:
        return Episode(task.payload["place"], task.payload["thing"], self.settings.looks)


class Episode(Environment):
    tools = (function_tool("look", "Look into a place and return what lies there.", {"place": "string"}),)

    def __init__(self, place: str, thing: str, looks: int) -> None:
        self._place, self._thing, self._left = place, thing, looks

    async def call(self, call: ToolCall) -> str:
        """Return what the model reads. A text that begins with `error:` is counted as a tool error."""
        arguments = checked_arguments(call, self.tools)
        if isinstance(arguments, str):  # it says what is wrong with the call
            return arguments
        if self._left <= 0:
            raise EpisodeEnded
        self._left -= 1
        return self._thing if arguments["place"] == self._place else "nothing"

    async def score(self, answer: str | None) -> dict[str, float]:
        """Return the parts that `reward_parts` names. `answer` is None when the episode ended without one."""
        return {"found": float(answer is not None and answer.strip() == self._thing)}
