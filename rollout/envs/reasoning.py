"""Environment `reasoning`: generated puzzles of one family of reasoning-gym, answered in one turn and graded by it.

A task is a number, from which the library makes the same question every time. Its split is decided by the hash of the
question, so train and eval are disjoint for every seed. The oracle answers in the form that is asked for, always right.
"""

from __future__ import annotations

import logging
import random
import re
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, Field

from rewards.sandbox.sandbox import Sandbox
from rollout.contracts import Environment, EnvironmentSpec
from rollout.envs.config import ReasoningSettings
from rollout.envs.gym_library import LARGEST, Family, make_family
from rollout.splits import split_of
from rollout.types import Message, Split, Task

log = logging.getLogger(__name__)

DRAWS = 1000
"""Draws for one task. With fewer than one in a thousand in a split, there is nothing to hold out."""
INSTRUCTIONS = {
    "text": "Reply with the answer only.",
    "number": "End your reply with the answer, as a number.",
    "tags": "Give your final answer between <answer> and </answer>.",
}
"""What a question is followed by if the recipe has no instruction, by `ReasoningSettings.answer`."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Numbered(BaseModel):
    """What a row for this environment must hold: the number of the task in its family."""

    number: int = Field(ge=0, lt=LARGEST)


class ReasoningTasks(EnvironmentSpec):
    """Generates the tasks of a family, the oracle's answers and episodes."""

    name = "reasoning"
    payload = Numbered
    reward_parts = ("solved",)

    def __init__(self, settings: ReasoningSettings) -> None:
        """Raises ValueError for a family or parameters that cannot be used."""
        super().__init__(settings)
        self._settings = settings
        self._family = make_family(settings.family, settings.parameters)
        self._entry = lru_cache(maxsize=64)(self._family.__getitem__)  # all members of a group want the same one
        self._instruction = settings.instruction or ("" if settings.examples else INSTRUCTIONS[settings.answer])
        self._examples = [message for number in self._example_numbers() for message in self._solved(number)]

    def generate(self, index: int, seed: int, split: Split) -> Task:
        number = self._draw(random.Random(f"{self._what}/{seed}/{split}/{index}"), split)
        return Task(
            id=f"{self._settings.family}-{split}-{seed}-{index}",
            environment=self.name,
            messages=(*self._examples, self._question(number)),
            payload={"number": number},
            metadata={"family": self._settings.family, "answer": str(self._entry(number)["answer"])},
        )

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """Return the right answer, in the form that is asked for."""
        return [*task.messages, self._solved(task.payload["number"])[1]]

    def make(self, task: Task, sandbox: Sandbox) -> ReasoningEpisode:
        return ReasoningEpisode(self._family, self._entry(task.payload["number"]), self._settings)

    def vote(self, answer: str) -> str | None:
        return answer_in(answer, self._settings.answer)

    @property
    def _what(self) -> str:
        return f"{self.name}/{self._settings.family}"

    def _draw(self, rng: random.Random, split: Split) -> int:
        """Draw the number of a task from `split`."""
        for _ in range(DRAWS):
            number = rng.randrange(LARGEST)
            if split_of(f"{self._what}/{self._entry(number)['question']}") == split:
                return number
        raise ValueError(
            f"family {self._settings.family!r} with parameters {self._settings.parameters} has no task for the split "
            f"{split!r} among {DRAWS}: it has too few different ones; widen its parameters"
        )

    def _example_numbers(self) -> list[int]:
        rng = random.Random(f"{self._what}/examples")
        return [self._draw(rng, "train") for _ in range(self._settings.examples)]

    def _question(self, number: int) -> Message:
        parts = [str(self._entry(number)["question"]).strip(), self._instruction]
        return {"role": "user", "content": "\n".join(part for part in parts if part)}

    def _solved(self, number: int) -> list[Message]:
        answer = str(self._entry(number)["answer"])
        told = f"<answer>{answer}</answer>" if self._settings.answer == "tags" else answer
        return [self._question(number), {"role": "assistant", "content": told}]


class ReasoningEpisode(Environment):
    """One question, which the model's first turn answers."""

    def __init__(self, family: Family, entry: dict[str, Any], settings: ReasoningSettings) -> None:
        self._family, self._entry, self._settings = family, entry, settings

    async def score(self, answer: str | None) -> dict[str, float]:
        graded = None if answer is None else answer_in(answer, self._settings.answer)
        score = 0.0 if graded is None else self._grade(graded)
        if not self._settings.partial_credit:
            score = float(score >= 1.0)
        return {"solved": score}

    def _grade(self, answer: str) -> float:
        """The grader's score from 0 to 1. An answer that it cannot read is wrong."""
        try:
            return min(max(self._family.score_answer(answer, self._entry), 0.0), 1.0)
        except Exception as error:  # graders raise anything for what is no answer at all
            log.debug("the grader of %s cannot read %r: %s", self._settings.family, answer[:100], error)
            return 0.0


def answer_in(text: str, form: str) -> str | None:
    """The part of a turn's text that is graded; None if there is none. `form` is `ReasoningSettings.answer`."""
    if form == "text":
        return text.strip()
    found = (_NUMBER if form == "number" else _TAGS).findall(text)
    return found[-1].strip() if found else None
