"""Environment `python`: arithmetic and string questions, a `python` tool that runs the model's code in the sandbox.

The final answer is judged by executing a test program on it in the same sandbox (rewards.code). The oracle is a noisy
demonstrator: it makes the mistakes below with the stated probabilities, so that a model trained on it succeeds
sometimes and reinforcement learning has the right behaviour to find.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from rewards.code import code_reward
from rewards.sandbox import Outcome, Sandbox
from rollout.environment import Split, ToolCall
from rollout.envs.common import ITEMS, PLACES, calls, checked_arguments, draw, function_tool, says
from rollout.types import Message, Task

TOOLS = (function_tool("python", "Run a Python program and return what it prints.", {"code": "string"}),)
MAX_OBSERVATION = 400
"""Characters of a program's output that the model is shown."""

P_NO_TOOL = 0.3
"""The oracle gives up without calling the tool."""
P_WRONG_OPERATION = 0.3
"""Otherwise: it runs code for another operation than the one asked."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on two numbers: its word, its sign in Python, what it computes."""

    word: str
    sign: str
    compute: Callable[[int, int], int]


OPERATIONS = (
    Operation("plus", "+", lambda a, b: a + b),
    Operation("minus", "-", lambda a, b: a - b),
    Operation("times", "*", lambda a, b: a * b),
)
ASKED = {"numbers": (0, 1), "letters": (0, 1, 2)}
"""Operations per kind of question, so that no answer has more than two digits."""
PHRASINGS = {
    "numbers": ("What is {a} {word} {b}?", "Compute {a} {word} {b}."),
    "letters": ("How many letters is {a} {word} {b}?", "Letters of {a} {word} letters of {b}?"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """`kind` numbers: a and b are numbers. `kind` letters: they are words that count by their lengths."""

    kind: str
    operation: int
    a: str
    b: str

    @property
    def content(self) -> str:
        return f"{self.kind} {self.a} {OPERATIONS[self.operation].word} {self.b}"

    def text(self, rng: random.Random) -> str:
        phrasing = rng.choice(PHRASINGS[self.kind])
        return phrasing.format(a=self.a, b=self.b, word=OPERATIONS[self.operation].word)

    def code(self) -> str:
        """The program that prints the answer."""
        a, b = (self.a, self.b) if self.kind == "numbers" else (f'len("{self.a}")', f'len("{self.b}")')
        return f"print({a} {OPERATIONS[self.operation].sign} {b})"

    def answer(self) -> str:
        """What the program prints."""
        a, b = (int(self.a), int(self.b)) if self.kind == "numbers" else (len(self.a), len(self.b))
        return str(OPERATIONS[self.operation].compute(a, b))


class PythonQuestions:
    """The specification: where questions come from, how the oracle answers, how an episode is made."""

    name = "python"
    reward_parts = ("code",)

    def generate(self, index: int, seed: int, split: Split) -> Task:
        question, rng = draw(_sample, lambda q: q.content, environment=self.name, index=index, seed=seed, split=split)
        return Task(
            id=f"{self.name}-{split}-{seed}-{index}",
            environment=self.name,
            messages=({"role": "user", "content": question.text(rng)},),
            payload={"question": asdict(question), "tests": f"assert answer.strip() == {question.answer()!r}"},
            metadata={"kind": f"{question.kind} {OPERATIONS[question.operation].word}"},
        )

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """The oracle's conversation. Its mistakes are drawn from `rng`; its tool results are what the code prints."""
        question = Question(**task.payload["question"])
        if rng.random() < P_NO_TOOL:
            return [*task.messages, says("unknown", "I give up.")]
        if rng.random() < P_WRONG_OPERATION:
            others = [i for i in ASKED[question.kind] if i != question.operation]
            question = replace(question, operation=rng.choice(others))
        call = ToolCall(name="python", arguments={"code": question.code()})
        printed = question.answer()
        return [*task.messages, *calls(call, "I run code.", printed), says(printed, "I have the result.")]

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
        if execution.outcome is Outcome.OK:
            return _capped(execution.stdout.strip()) or "(no output)"
        lines = execution.stderr.strip().splitlines()
        return _capped(f"error: {lines[-1] if lines else execution.outcome}")

    async def score(self, answer: str | None) -> dict[str, float]:
        return {"code": await code_reward(self._sandbox, self._tests, answer)}

    async def close(self) -> None:
        """Nothing is held."""


def _sample(rng: random.Random) -> Question:
    kind = rng.choice(tuple(ASKED))
    operation = rng.choice(ASKED[kind])
    if kind == "letters":
        return Question(kind, operation, rng.choice(ITEMS), rng.choice(PLACES))
    return Question(kind, operation, str(rng.randint(10, 40)), str(rng.randint(2, 9)))


def _capped(text: str) -> str:
    return text if len(text) <= MAX_OBSERVATION else text[:MAX_OBSERVATION] + "…"
