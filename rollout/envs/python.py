"""Environment `python`: arithmetic and string questions, with a tool that runs the model's code in the sandbox.

The final answer is judged by executing a test program on it in the same sandbox (rewards.scorers.code). The oracle is a
noisy demonstrator: it makes the mistakes below with the stated probabilities, so that a model trained on it succeeds
sometimes and reinforcement learning has the right behaviour to find.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import dropwhile
from weakref import WeakKeyDictionary

from rewards.judge.judge import Judge
from rewards.judge.rows import Judged, judged
from rewards.sandbox.sandbox import Outcome, Sandbox, Workspace
from rollout.contracts import Environment, EnvironmentSpec, ToolCall
from rollout.envs.arguments import checked_arguments, function_tool
from rollout.envs.common import ANIMALS, ITEMS, PLACES, calls, draw, says
from rollout.envs.config import PythonSettings
from rollout.types import Message, Split, Task

TOOLS = (function_tool("python", "Run a Python program and return what it prints.", {"code": "string"}),)

P_NO_TOOL = 0.4
"""Probability that the oracle gives up without calling the tool."""
P_NO_ANSWER = 0.4
"""Probability that an oracle that runs the right code gives up on the result."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A kind of question about two words: its phrasings, the program that prints the answer, and that answer."""

    phrasings: tuple[str, ...]
    code: str
    answer: Callable[[str, str], object]


OPERATIONS = {
    "plus": Operation(
        ("How many letters is {a} plus {b}?", "Letters of {a} plus letters of {b}?"),
        'print(len("{a}") + len("{b}"))',
        lambda a, b: len(a) + len(b),
    ),
    "minus": Operation(
        ("How many letters is {a} minus {b}?", "Letters of {a} minus letters of {b}?"),
        'print(len("{a}") - len("{b}"))',
        lambda a, b: len(a) - len(b),
    ),
    "times": Operation(
        ("How many letters is {a} times {b}?", "Letters of {a} times letters of {b}?"),
        'print(len("{a}") * len("{b}"))',
        lambda a, b: len(a) * len(b),
    ),
    "join": Operation(
        ("Write {a} and {b} as one word.", "Join {a} and {b}."),
        'print("{a}" + "{b}")',
        lambda a, b: a + b,
    ),
}
"""Arithmetic on lengths, and joining of strings. The results are small, so a small model can learn to copy them."""


@dataclass(frozen=True, slots=True)
class Question:
    """`kind` is a key of OPERATIONS, `a` and `b` are words."""

    kind: str
    a: str
    b: str

    @property
    def content(self) -> str:
        return f"{self.kind} {self.a} {self.b}"

    def text(self, rng: random.Random) -> str:
        return rng.choice(OPERATIONS[self.kind].phrasings).format(a=self.a, b=self.b)

    def code(self) -> str:
        """Return the program that prints the answer."""
        return OPERATIONS[self.kind].code.format(a=self.a, b=self.b)

    def answer(self) -> str:
        """Return the text that the program prints."""
        return str(OPERATIONS[self.kind].answer(self.a, self.b))


class PythonQuestions(EnvironmentSpec):
    """Generates questions, the oracle's answers and episodes."""

    name = "python"
    payload = Judged
    reward_parts = ("code",)
    uses_sandbox = True

    def __init__(self, settings: PythonSettings) -> None:
        super().__init__(settings)
        self._settings = settings
        self._judges: WeakKeyDictionary[Sandbox, Judge] = WeakKeyDictionary()

    def generate(self, index: int, seed: int, split: Split) -> Task:
        question, rng = draw(_sample, lambda q: q.content, environment=self.name, index=index, seed=seed, split=split)
        return Task(
            id=f"{self.name}-{split}-{seed}-{index}",
            environment=self.name,
            messages=({"role": "user", "content": question.text(rng)},),
            payload={"question": asdict(question), "tests": f"assert answer.strip() == {question.answer()!r}"},
            metadata={"kind": question.kind},
        )

    def demonstrate(self, task: Task, rng: random.Random) -> list[Message]:
        """Return the oracle's conversation. Its mistakes are drawn from `rng`; tool results are the code's output."""
        question = Question(**task.payload["question"])
        if rng.random() < P_NO_TOOL:
            return [*task.messages, says("unknown", "I give up.")]
        call = ToolCall(name="python", arguments={"code": question.code()})
        printed = question.answer()
        end = says("unknown", "I give up.") if rng.random() < P_NO_ANSWER else says(printed, "I have the result.")
        return [*task.messages, *calls(call, "I run code.", printed), end]

    def make(self, task: Task, sandbox: Sandbox) -> PythonEpisode:
        judge = self._judges.setdefault(sandbox, Judge(sandbox))
        return PythonEpisode(task, sandbox, judge, self._settings)


class PythonEpisode(Environment):
    """One question being answered. The sandbox is shared, so `close` leaves it alone, but for the episode's folder."""

    tools = TOOLS

    def __init__(self, task: Task, sandbox: Sandbox, judge: Judge, settings: PythonSettings) -> None:
        self._task = task.id
        self._row = judged(task.payload)
        self._sandbox = sandbox
        self._judge = judge
        self._settings = settings
        self._workspace: Workspace | None = None
        self._closing = AsyncExitStack()

    async def call(self, call: ToolCall) -> str:
        arguments = checked_arguments(call, TOOLS)
        if isinstance(arguments, str):
            return arguments
        execution = await self._sandbox.run(arguments["code"], workspace=await self._folder())
        execution.raise_for_infrastructure()
        if execution.outcome is Outcome.OK:
            return self._capped(execution.stdout.strip()) or "(no output)"
        said = execution.stdout.strip() if execution.outcome is Outcome.FAILED else ""
        return self._capped(f"{said}\nerror: {last_error(execution.stderr) or execution.outcome}".strip())

    async def score(self, answer: str | None) -> dict[str, float]:
        return {"code": await self._judge(self._row, answer, self._task)}

    async def close(self) -> None:
        await self._closing.aclose()

    async def _folder(self) -> Workspace | None:
        """The folder that lives as long as the episode, if the recipe wants one."""
        if self._settings.workspace and self._workspace is None:
            self._workspace = await self._closing.enter_async_context(self._sandbox.workspace())
        return self._workspace

    def _capped(self, text: str) -> str:
        most = self._settings.max_observation
        return text if len(text) <= most else text[:most] + "…"


def last_error(stderr: str) -> str:
    """The error with which a traceback ends, of as many lines as it has; the last line of any other text."""
    lines = stderr.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    after = lines[frames[-1] :] if frames else lines[-1:]
    return "\n".join(dropwhile(lambda line: line.startswith(" "), after))


def _sample(rng: random.Random) -> Question:
    return Question(rng.choice(tuple(OPERATIONS)), rng.choice((*ITEMS, *ANIMALS)), rng.choice(PLACES))
