"""Environment `python`: arithmetic and string questions, a `python` tool that runs the model's code in the sandbox.

The final answer is judged by executing a test program on it in the same sandbox (rewards.code). The oracle is a noisy
demonstrator: it makes the mistakes below with the stated probabilities, so that a model trained on it succeeds
sometimes and reinforcement learning has the right behaviour to find.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.code import code_reward
from rewards.sandbox import Sandbox
from rollout.environment import Split, ToolCall
from rollout.envs.common import calls, checked_arguments, draw, function_tool, restated, says
from rollout.types import Message, Task

TOOLS = (function_tool("python", "Run a Python program and return what it prints.", {"code": "string"}),)
MAX_OBSERVATION = 400
"""Characters of a program's output that the model is shown."""

P_NO_TOOL = 0.3
"""The oracle answers without calling the tool: it repeats a number of the question."""
P_WRONG_OPERATION = 0.3
"""Otherwise: it runs code for another operation than the one asked."""


@dataclass(frozen=True, slots=True)
class Operation:
    """How one kind of question is asked, coded and computed."""

    phrasings: tuple[str, ...]
    code: str
    compute: Callable[[str, str], str]


OPERATIONS = {
    "plus": Operation(
        ("What is {a} plus {b}?", "Compute {a} plus {b}."), "print({a} + {b})", lambda a, b: str(int(a) + int(b))
    ),
    "minus": Operation(
        ("What is {a} minus {b}?", "Compute {a} minus {b}."), "print({a} - {b})", lambda a, b: str(int(a) - int(b))
    ),
    "times": Operation(
        ("What is {a} times {b}?", "Compute {a} times {b}."), "print({a} * {b})", lambda a, b: str(int(a) * int(b))
    ),
    "join": Operation(
        ("What is {a} joined to {b}?", "Write {a} joined to {b}."), 'print("{a}" + "{b}")', lambda a, b: a + b
    ),
    "reverse": Operation(
        ("What is {a} and {b} backwards?", "Write {a} and {b} backwards."),
        'print(("{a}" + "{b}")[::-1])',
        lambda a, b: (a + b)[::-1],
    ),
}


@dataclass(frozen=True, slots=True)
class Question:
    kind: str
    a: str
    b: str

    @property
    def content(self) -> str:
        return f"{self.kind} {self.a} {self.b}"


class PythonQuestions:
    """The specification: where questions come from, how the oracle answers, how an episode is made."""

    name = "python"

    def generate(self, index: int, seed: int, split: Split) -> Task:
        question, rng = draw(
            _sample, lambda q: q.content, environment=self.name, index=index, seed=seed, split=split
        )
        payload = {"kind": question.kind, "a": question.a, "b": question.b}
        text = rng.choice(OPERATIONS[question.kind].phrasings).format(a=question.a, b=question.b)
        return Task(
            id=f"{self.name}-{split}-{seed}-{index}",
            environment=self.name,
            messages=({"role": "user", "content": text},),
            payload={**payload, "tests": f"import sys\nassert sys.stdin.read().strip() == {expected(payload)!r}\n"},
            metadata={"kind": question.kind},
        )

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """The oracle's conversation. Its mistakes are drawn from `rng`; its tool results are what the code prints."""
        kind, a, b = task.payload["kind"], task.payload["a"], task.payload["b"]
        if rng.random() < P_NO_TOOL:
            return [*task.messages, says(a, "I know this.")]
        if rng.random() < P_WRONG_OPERATION:
            kind = rng.choice([other for other in OPERATIONS if other != kind])
        operation = OPERATIONS[kind]
        printed = operation.compute(a, b)
        call = ToolCall(name="python", arguments={"code": operation.code.format(a=a, b=b)})
        return [*task.messages, *calls(call, restated(task), printed), says(printed, "I have the result.")]

    def make(self, task: Task, sandbox: Sandbox) -> PythonEpisode:
        return PythonEpisode(str(task.payload["tests"]), sandbox)


class PythonEpisode:
    """One question being answered. The sandbox is shared and not ours to close."""

    tools = TOOLS

    def __init__(self, tests: str, sandbox: Sandbox) -> None:
        self._tests = tests
        self._sandbox = sandbox

    async def call(self, call: ToolCall) -> str:
        arguments = checked_arguments(call, TOOLS)
        if isinstance(arguments, str):
            return arguments
        execution = (await self._sandbox.run(arguments["code"])).raise_for_infrastructure()
        if execution.outcome == "ok":
            return _capped(execution.stdout.strip()) or "(no output)"
        lines = execution.stderr.strip().splitlines()
        return _capped(f"error: {lines[-1] if lines else execution.outcome}")

    async def score(self, answer: str | None) -> dict[str, float]:
        return {"code": await code_reward(self._sandbox, self._tests, answer)}

    async def close(self) -> None:
        """Nothing is held."""


def expected(payload: Mapping[str, Any]) -> str:
    """The answer of a question."""
    return OPERATIONS[payload["kind"]].compute(payload["a"], payload["b"])


def _sample(rng: random.Random) -> Question:
    return Question(rng.choice(tuple(OPERATIONS)), str(rng.randint(10, 99)), str(rng.randint(10, 99)))


def _capped(text: str) -> str:
    return text if len(text) <= MAX_OBSERVATION else text[:MAX_OBSERVATION] + "…"
