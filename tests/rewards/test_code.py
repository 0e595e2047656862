"""The code-execution reward: right is 1, wrong is 0, a broken sandbox is neither, and a pass cannot be talked into."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest

from rewards.code import CodeReward, code_reward, solution_reward
from rewards.config import SandboxConfig
from rewards.errors import InfrastructureError
from rewards.sandbox import Execution, Sandbox

pytestmark = pytest.mark.timeout(60)

LIMITS = SandboxConfig(wall_s=20.0, cpu_s=1, memory_mb=96, output_kb=16)
FORTY_TWO = "assert answer.strip() == '42'"
sandbox_of = functools.cache(Sandbox)


def score(tests: str, answer: str | None) -> float:
    return asyncio.run(code_reward(sandbox_of(LIMITS), tests, answer))


def solve(solution: str) -> float:
    return asyncio.run(
        solution_reward(
            sandbox_of(LIMITS), solution, entry="add", inputs=[[1, 2], ["a", "b"]], tests="assert results == [3, 'ab']"
        )
    )


def test_answers() -> None:
    assert score(FORTY_TWO, " 42\n") == 1.0
    assert score(FORTY_TWO, "41") == 0.0
    assert score(FORTY_TWO, None) == 0.0
    assert score("import sys\nassert sys.stdin.read() == 'grüße'", "grüße") == 1.0


@pytest.mark.parametrize("answer", ["'''\"\"\"\\", "{x}\n\r\0", "\ud800", "😀", "\\u0041", ""])
def test_an_answer_arrives_as_it_is(answer: str) -> None:
    assert score(f"assert answer == {answer!a}", answer) == 1.0


@pytest.mark.parametrize(
    "answer", ["42' or 1 or '", "'\nimport sys; sys.exit(0)\n'", "__import__('os')._exit(0)", "print('passed')"]
)
def test_an_answer_is_never_evaluated(answer: str) -> None:
    assert score(FORTY_TWO, answer) == 0.0


def test_tests_that_end_early_or_break_are_no_pass() -> None:
    assert score("import sys\nif 'exit' in answer: sys.exit(0)\nassert False", "exit") == 0.0
    assert score("assert int(answer) == 42", "forty-two") == 0.0
    assert score("while answer: pass", "x") == 0.0


def test_broken_tests_are_the_tasks_error() -> None:
    with pytest.raises(ValueError, match="not Python"):
        score("assert (", "42")


def test_solutions() -> None:
    assert solve("def add(a, b): return a + b") == 1.0
    assert solve("print('noise')\ndef add(a, b):\n    print('more')\n    return a + b") == 1.0
    assert solve("def add(a, b): return 3") == 0.0
    assert solve("def add(a, b): 1 / 0") == 0.0
    assert solve("def add(a, b): return {1}") == 0.0
    assert solve("def add(a, b):\n    while True: pass") == 0.0
    assert solve("def sub(a, b): return a - b") == 0.0
    assert solve("def add(") == 0.0


@pytest.mark.parametrize(
    "solution",
    [
        "import os\nos._exit(0)",
        "import sys\nprint('passed')\nsys.exit(0)",
        "class Yes(list):\n    __eq__ = lambda self, other: True\ndef add(a, b): return Yes()",
        "import json\njson.dumps = lambda value: '[true, true]'\ndef add(a, b): return 0",
        "import builtins\nbuiltins.AssertionError = SystemExit\ndef add(a, b): return 0",
        # What would defeat tests that shared the interpreter with the solution.
        "import sys, os, atexit\natexit.register(lambda: os._exit(0))\ndef add(a, b): return 0",
        "def add(a, b): return 0\nprint('[' * 50_000)\nimport os; os._exit(0)",
    ],
)
def test_a_solution_cannot_pass_by_other_means(solution: str) -> None:
    assert solve(solution) == 0.0


def test_a_failing_sandbox_is_not_a_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sandbox = sandbox_of(LIMITS)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="bwrap"):
        asyncio.run(code_reward(sandbox, FORTY_TWO, "42"))
    with pytest.raises(InfrastructureError, match="bwrap"):
        asyncio.run(
            solution_reward(sandbox, "def f(): return 1", entry="f", inputs=[[]], tests="assert results == [1]")
        )


class Counting(Sandbox):
    """A real sandbox that counts its executions."""

    executions = 0

    async def run(self, code: str, *, stdin: str = "") -> Execution:
        self.executions += 1
        return await super().run(code, stdin=stdin)


def test_a_group_that_agrees_is_judged_by_one_execution() -> None:
    async def check() -> None:
        sandbox = Counting(LIMITS)
        judge = CodeReward(sandbox)
        answers = ["42", "42", "41", "42", None]
        assert await asyncio.gather(*(judge(FORTY_TWO, a) for a in answers)) == [1.0, 1.0, 0.0, 1.0, 0.0]
        assert await judge("assert answer == '41'", "41") == 1.0
        assert sandbox.executions == 3

    asyncio.run(check())
