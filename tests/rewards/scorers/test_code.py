"""The code-execution reward: a right answer scores 1, a wrong one 0, and a broken sandbox raises an error. No answer
can talk the tests into a pass."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from pathlib import Path

import pytest

from rewards.contracts import Ending
from rewards.errors import InfrastructureError
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Execution, Outcome, Sandbox
from rewards.scorers.code import CodeReward, Judge
from rewards.scorers.config import RewardSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

LIMITS = SandboxConfig(wall_s=20.0, cpu_s=1, memory_mb=96, output_kb=16)
FORTY_TWO = "assert answer.strip() == '42'"
sandbox_of = functools.cache(Sandbox)


def score(tests: str, answer: str | None) -> float:
    async def judged() -> float:
        return await Judge(sandbox_of(LIMITS))(tests, answer)

    return asyncio.run(judged())


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


def test_a_failing_sandbox_is_not_a_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sandbox_of(LIMITS)  # made while bwrap can be found
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="bwrap"):
        score(FORTY_TWO, "42")


def test_the_reward_judges_the_answer_by_the_tasks_tests() -> None:
    reward = CodeReward(RewardSettings(name="code"), sandbox_of(LIMITS))
    assert reward.parts == ("code",) and reward.uses_sandbox
    ending = Ending(answer="42", payload={"tests": FORTY_TWO})
    assert asyncio.run(reward.score(ending)) == {"code": 1.0}


class Counting(Sandbox):
    """A real sandbox that counts its executions."""

    executions = 0

    async def run(self, code: str, *, stdin: str = "") -> Execution:
        self.executions += 1
        return await super().run(code, stdin=stdin)


def test_a_group_that_agrees_is_judged_by_one_execution() -> None:
    async def check() -> None:
        sandbox = Counting(LIMITS)
        judge = Judge(sandbox)
        answers = ["42", "42", "41", "42", None]
        assert await asyncio.gather(*(judge(FORTY_TWO, a) for a in answers)) == [1.0, 1.0, 0.0, 1.0, 0.0]
        assert await judge("assert answer == '41'", "41") == 1.0
        assert sandbox.executions == 3

    asyncio.run(check())


class Troubled(Counting):
    """A real sandbox whose first executions end as `troubles` say: an exception is raised, an outcome is reported."""

    def __init__(self, *troubles: Exception | Outcome) -> None:
        super().__init__(LIMITS)
        self._troubles = list(troubles)

    async def run(self, code: str, *, stdin: str = "") -> Execution:
        execution = await super().run(code, stdin=stdin)
        if not self._troubles:
            return execution
        trouble = self._troubles.pop(0)
        if isinstance(trouble, Exception):
            raise trouble
        return dataclasses.replace(execution, outcome=trouble)


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.MEMORY, Outcome.OUTPUT_LIMIT])
def test_a_verdict_that_a_limit_gave_is_not_kept(outcome: Outcome) -> None:
    """The machine may have stalled, so the next trajectory with the same answer is judged anew."""

    async def check() -> None:
        judge = Judge(sandbox := Troubled(outcome))
        assert await asyncio.gather(*(judge(FORTY_TWO, "42") for _ in range(3))) == [0.0] * 3
        assert (await judge(FORTY_TWO, "42"), await judge(FORTY_TWO, "42")) == (1.0, 1.0)
        assert sandbox.executions == 2

    asyncio.run(check())


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), InfrastructureError("gone")])
def test_an_error_is_raised_to_who_waits_for_it_and_forgotten(error: Exception) -> None:
    async def check() -> None:
        judge = Judge(Troubled(error))
        waiting = [judge(FORTY_TWO, "42") for _ in range(3)]
        assert [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)] == [type(error)] * 3
        assert await judge(FORTY_TWO, "42") == 1.0

    asyncio.run(check())


def test_a_cancelled_caller_takes_nobody_elses_verdict() -> None:
    async def check() -> None:
        judge = Judge(sandbox := Counting(LIMITS))
        first, second = (asyncio.create_task(judge(FORTY_TWO, "42")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == 1.0 and first.cancelled() and sandbox.executions == 1

    asyncio.run(check())
